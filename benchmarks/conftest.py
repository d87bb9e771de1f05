"""How the benchmarks use pytest-benchmark.

    make bench                                                         # all groups, the README and its plots
    pytest benchmarks/bench_graph.py --benchmark-json=graph.json       # one, with all of pytest-benchmark's options
    pytest benchmarks/bench_attribution.py --tiny                      # does it run? the figures mean nothing

Contenders take turns: each of a group's cases is called once, then each once more, and so on, so that a busy minute of
the machine hits all of them. To pytest-benchmark a turn is a benchmark of one round; when all are done those of a case
are folded into one. A case counts only where its result agrees with its reference to the bound that it names; otherwise
it has no figures but that gap, under "not_counted", where also stands what could not run, and why.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest  # noqa: E402
import turns  # noqa: E402
from results import commit, machine, trimmed  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--tiny", action="store_true", help="benchmarks: the smallest sizes and two turns")
    parser.addoption("--model", help="benchmarks: a model's directory (default: the demo's SmolLM2-135M-Instruct)")


def pytest_configure(config):
    config.stash[turns.KEY] = turns.Turns(config)


def pytest_collection_modifyitems(items):
    """Group by group, in each turn by turn. Stable: otherwise in the order of the file."""
    order = {}
    for item in items:
        if (params := getattr(getattr(item, "callspec", None), "params", {})) and "turn" in params:
            group = item.path, item.originalname, params.get("tokens")
            order[item] = order.setdefault(group, len(order)), params["turn"]
    where = {item: i for i, item in enumerate(items)}
    items.sort(key=lambda item: (*order.get(item, (where[item], 0)), where[item]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    found = session.config.stash[turns.KEY]
    found.close()
    session.config._benchmarksession.benchmarks[:] = found.folded(session.config._benchmarksession.benchmarks)
    return (yield)


def pytest_terminal_summary(terminalreporter, config):
    for one in config.stash[turns.KEY].not_counted:
        terminalreporter.write_line(f"not counted: {one['group']}: {one['name']}: {one['why']}")


def pytest_benchmark_generate_machine_info():
    return machine()


def pytest_benchmark_generate_commit_info():
    return commit()


def pytest_benchmark_update_json(config, output_json):
    trimmed(output_json, config.stash[turns.KEY])


@pytest.fixture
def timed(request, benchmark):
    """`turns.Turns.timed` for this test's benchmark."""
    found = request.config.stash[turns.KEY]
    return lambda *args, **named: found.timed(benchmark, request.node.callspec.params, *args, **named)


@pytest.fixture
def contender(request, benchmark):
    """`turns.Turns.contender` for this test's benchmark."""
    found = request.config.stash[turns.KEY]
    return lambda *args, **named: found.contender(benchmark, request.node.callspec.params, *args, **named)


@pytest.fixture(scope="session")
def tokenizer(request):
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # a prompt is cut from a text that is longer than the model takes
    return AutoTokenizer.from_pretrained(request.config.stash[turns.KEY].directory("smollm2"))
