"""Models of attention alone, against the last commit that told families by their names (`BEFORE` in the Makefile): what
telling them by their code, and all that it brought, costs the others. Two threads, 6 minutes.
"""

import pytest
import torch
from bench_attribution import BOUND
from hybrids import ATTENTION
from turns import Reference

# model: tokens, turns
RUNS = {"smollm2": [(54, 15), (512, 7), (2048, 3)]} | {name: [(512, 5)] for name in ATTENTION}
CASES = {"forward": ("ours", "forward"), "ours": ("ours", "attribute"), "before": ("ours@before", "attribute")}


def pytest_generate_tests(metafunc):
    tiny = metafunc.config.getoption("--tiny")
    given = [
        pytest.param((name, length), turn, case, id=f"{name}-{length}-{case}-turn{turn}")
        for name, runs in RUNS.items()
        for length, turns in ([(16, 2)] if tiny else runs)
        for turn in range(turns)
        for case in CASES
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def test_before(contender, tokens, turn, case):
    name, length = tokens
    ids = torch.randint(3, 4096, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    peer, call = CASES[case]
    held = Reference("before", BOUND) if case == "ours" else None
    group = f"before, {name}, {length} tokens"
    given = {"ids": ids, "target": 3, "contrast": 4}
    contender(group, case, peer, call, given, against=held, model=name, tokens=length)
