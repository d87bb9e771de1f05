"""The benchmarks of the CPU: turns become cases, only what agrees counts, what cannot run is a row, figures have a
commit."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("pytest_benchmark")
from pytest_benchmark.stats import Stats  # noqa: E402

from lrp_fast.hf import check  # noqa: E402

KINDS = ("benchmarks", "not_counted")
PEER = """
import os, time
def load(directory, **options):
    if directory == "nothing":
        raise ImportError("no such package")
    def echo(x):
        print("in between")
        return {"relevance": x}
    def grow(size):
        return {"value": len(b"x" * size)}
    def raising(x):
        raise ValueError("no such thing")
    def killed(x):
        os.kill(os.getpid(), 9)
    def slow(x):
        time.sleep(30)
    return {"echo": echo, "grow": grow, "raising": raising, "killed": killed, "slow": slow}
"""


@pytest.fixture
def modules(root, monkeypatch):
    """Imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def peer(tmp_path, modules):
    """Starts a worker of the peer above, and ends it with the test."""
    workers, started = modules("workers"), []
    (tmp_path / "peer.py").write_text(PEER)

    def start(directory="", limit_bytes=2 * 10**9):
        started.append(workers.Worker(str(tmp_path / "peer"), directory, limit_bytes=limit_bytes))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_a_worker_answers_until_it_is_closed(peer):
    worker = peer()
    for x in ([1.0, 2.0], [3.0]):
        worker.prepare("echo", {"x": x})
        worker.run()
        report = worker.report()
        assert report["result"] == {"relevance": x} and report["peak_mb"] >= 0
    worker.prepare("grow", {"size": 300_000_000})
    worker.run()
    assert abs(worker.report()["peak_mb"] - 300) < 10
    assert worker.alive


@pytest.mark.parametrize(
    ("call", "given", "why"),
    [
        ("grow", {"size": 4 * 10**9}, "out of memory at 2 GB"),
        ("killed", {"x": 1}, "out of memory at 2 GB"),  # as the system does it
        ("raising", {"x": 1}, "ValueError: no such thing"),
        ("absent", {}, "KeyError: 'absent'"),
    ],
)
def test_what_cannot_run_says_why(call, given, why, peer, modules):
    worker = peer()
    with pytest.raises(modules("workers").Failed) as caught:
        worker.prepare(call, given)
        worker.run()
    assert str(caught.value) == why and not worker.alive


def test_what_does_not_start_says_why(peer, modules):
    with pytest.raises(modules("workers").Failed, match="ImportError: no such package"):
        peer("nothing")


def test_what_takes_too_long_is_ended(peer, modules, monkeypatch):
    workers = modules("workers")
    worker = peer()
    monkeypatch.setattr(workers, "CALL_SECONDS", 0.5)
    worker.prepare("slow", {"x": 1})
    with pytest.raises(workers.Failed, match=r"took more than 0\.5 s"):
        worker.run()
    assert not worker.alive


def benchmark(group, case, turn, seconds, **info):
    stats = Stats()
    stats.update(seconds)
    name = f"test_it[{case}-turn{turn}]"
    return SimpleNamespace(
        name=name, fullname=f"benchmarks/bench_it.py::{name}", group=group, param=f"{case}-turn{turn}", has_error=False,
        params={"case": case, "turn": turn}, extra_info={"case": case, **info}, stats=stats,
    )  # fmt: skip


def test_turns_become_cases_and_only_what_agrees_counts(modules):
    turns = modules("turns")
    found = turns.Turns(None)
    relevance = {
        "ours": [1.0, -2.0],
        "near": [1.0, -2.00001],
        "far": [1.0, -2.1],
        "short": [1.0],
        "nan": [torch.nan, 0],
    }
    for case, numbers in relevance.items():
        found.results["g", case] = numbers
        found.references["g", case] = turns.Reference("truth", 1e-4)
    found.results["g", "truth"] = [1.0, -2.0]
    found.references["g", "alone"] = turns.Reference("nobody", 1e-4)
    found.results["g", "alone"] = [1.0]
    found.failed["g", "broke"] = "out of memory at 16 GB"  # in its second turn
    found.not_counted.append({"group": "g", "name": "broke", "why": "out of memory at 16 GB"})
    names = (*relevance, "alone", "free")
    run = [benchmark("g", case, turn, 1 + turn, peak_mb=turn) for turn in (0, 1) for case in names]
    run.append(benchmark("g", "broke", 0, 1.0))
    counted = found.folded(run)
    assert [one.extra_info["case"] for one in counted] == ["ours", "near", "free"]
    for one in counted:
        assert one.stats.data == [1, 2] and one.stats.rounds == 2 and one.extra_info["peak_mb"] == 1
        assert "turn" not in one.name + one.fullname + one.param + str(one.params)
    near = counted[1].extra_info
    assert near["against"] == "truth" and near["error_greatest"] == pytest.approx(5e-6)
    assert near["error_summed"] == pytest.approx(1e-5 / 3)
    why = {one["name"]: one["why"] for one in found.not_counted}
    assert set(why) == {"broke", "far", "short", "nan", "alone"} and why["broke"] == "out of memory at 16 GB"
    assert why["far"] == "differs from truth by 5.0e-02 of the greatest relevance, bound 0.0001"
    assert "1 numbers" in why["short"] and "inf" in why["nan"] and "nobody" in why["alone"]


def report(group, rows, not_counted=()):
    """A result file's contents: rows are (case, seconds by turn, extra_info)."""
    return {
        "benchmarks": [
            {"group": group, "extra_info": {"case": case, "peak_mb": 100.0, **info},
             "stats": {"median": sorted(data)[len(data) // 2], "data": data}}
            for case, data, info in rows
        ],
        "not_counted": [{"group": group, "name": name, "why": why} for name, why in not_counted],
        "machine_info": {"cpu": "A CPU", "threads": 2},
        "versions": {"torch": "2", "lxt": "2.1"},
        "commit_info": {"id": "abc", "dirty": False},
    }  # fmt: skip


def test_a_row_without_agreement_shows_its_gap_instead_of_a_time(modules, tmp_path):
    agrees = {"own_forward": "forward", "against": "float64", "error_greatest": 1e-6}
    rows = [("forward", [1.0, 2.0, 1.0], {"own_forward": "forward"}), ("ours", [2.0, 6.0, 2.2], agrees)]
    missing = [("LXT", "differs from ours by 5.0e-02"), ("gradient x input", "out of memory at 16 GB")]
    (tmp_path / "attribution.json").write_text(json.dumps(report("attribution, 2048 tokens", rows, missing)))
    section = modules("tables").section(tmp_path)
    assert "| 2,048 | ours | 2.2 s | 2.20 (2.00–3.00) |  |  | 0.10 GB | 1e-06 |" in section  # turn by turn: 2, 3, 2.2
    assert "| 2,048 | LXT | differs from ours by 5.0e-02 |  |  |  |  |  |" in section
    assert "| 2,048 | gradient x input | out of memory at 16 GB |  |  |  |  |  |" in section
    assert "Commit abc, A CPU, 2 threads, torch 2, lxt 2.1." in section


def test_every_group_has_its_table_and_its_place_in_make_bench(modules, root):
    groups = {path.stem.removeprefix("bench_") for path in (root / "benchmarks").glob("bench_*.py")}
    tables, makefile = modules("tables"), (root / "Makefile").read_text()
    assert groups == set(tables.GROUPS) and set(tables.GROUPS.values()) == set(tables.TITLES)
    listed = [line for line in makefile.splitlines() if line.startswith(("BENCH ?=", "BENCH_LONG :="))]
    assert sorted(name for line in listed for name in line.partition("=")[2].split()) == sorted(groups)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_figures_are_current_until_the_code_changes(modules, tmp_path, monkeypatch):
    results = modules("results")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "benchmarks" / "results")
    results.RESULTS.mkdir(parents=True)

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    assert not results.current("graph")
    results.commit.cache_clear()
    try:
        of = {"commit_info": results.commit(), "tiny": False}
    finally:
        results.commit.cache_clear()
    for tiny in (True, False):
        (results.RESULTS / "graph.json").write_text(json.dumps(of | {"tiny": tiny}))
        assert results.current("graph") != tiny
    git("add", ".")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "its figures, and a test")
    assert results.current("graph")
    (tmp_path / "code.py").write_text("2")
    assert not results.current("graph")
    git("commit", "-qam", "other code")
    assert not results.current("graph")


def bench(root, folder, *arguments):
    """pytest-benchmark's JSON of a tiny run."""
    out = folder / "out.json"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tiny", *arguments]
    # Beside other workers pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command.append(f"--benchmark-json={out}")
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zennit") is None, reason="Zennit is not installed")
def test_linear_maps_agree_with_zennit_and_the_file_names_no_host(root, tmp_path, modules):
    found = bench(root, tmp_path, "benchmarks/bench_linear.py")
    assert found["not_counted"] == [] and len(found["benchmarks"]) == 18
    assert {one["stats"]["rounds"] for one in found["benchmarks"]} == {2}
    assert all(one["extra_info"]["error_summed"] <= 1e-4 for one in found["benchmarks"])
    assert set(found["machine_info"]) == {"cpu", "system", "python", "threads"}
    assert set(found["commit_info"]) == {"id", "dirty"} and found["tiny"] and str(root) not in json.dumps(found)
    compare = [sys.executable, "-P", "-m", "pytest_benchmark", "compare", str(tmp_path / "out.json")]
    done = subprocess.run(compare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Zennit's gamma" in done.stdout
    (tmp_path / "linear.json").write_text(json.dumps(found))
    assert "| Zennit's gamma | " in modules("tables").section(tmp_path)


@pytest.mark.slow
def test_this_package_of_an_older_commit_is_a_peer_like_any_other(modules, monkeypatch, tmp_path, root):
    """In whose place the same commit stands here."""
    turns, before = modules("turns"), modules("bench_before")
    monkeypatch.setitem(turns.PACKAGES, "ours@before", os.fspath(root))
    config = SimpleNamespace(getoption={"--model": os.fspath(tiny_llama(tmp_path))}.get)
    found, run = turns.Turns(config), []

    def contender(*given, **named):
        one = benchmark(given[0], given[1], turn, 1.0)
        one.pedantic = lambda call, setup, rounds: (setup(), call())
        run.append(one)
        found.contender(one, {"turn": turn}, *given, **named)

    try:
        for turn in (0, 1):
            for case in before.CASES:
                before.test_before(contender, ("gemma2", 16), turn, case)
    finally:
        found.close()
    counted = {one.extra_info["case"]: one for one in found.folded(run)}
    assert set(counted) == set(before.CASES) and found.not_counted == []
    assert counted["ours"].extra_info["against"] == "before" and counted["ours"].stats.rounds == 2
    assert {one.group for one in run} == {"before, gemma2, 16 tokens"}


@pytest.mark.parametrize(
    "name", ["qwen3_next", "bamba", "mamba", "lfm2", "recurrent_gemma", "qwen3", "gemma2", "mixtral"]
)
def test_models_of_the_benchmarks_are_those_that_are_explained(name, modules):
    hybrids, before = modules("hybrids"), modules("bench_before")
    model_class, told = hybrids.config_of(name)
    config = model_class.config_class(**told)
    with torch.device("meta"):
        model = model_class(config)
    check(model)
    kinds = getattr(config, "layer_types", [])
    attending = sum(kinds.count(one) for one in ("attention", "full_attention", "sliding_attention"))
    assert name in hybrids.ATTENTION or attending == (name != "mamba")
    tokens = before.RUNS[name][0][0] if name in hybrids.ATTENTION else modules("bench_hybrids").TOKENS
    window = getattr(config, "sliding_window", None)
    assert window is None or window < tokens  # it hides something


def tiny_llama(folder):
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                         vocab_size=49152, max_position_embeddings=256, tie_word_embeddings=True)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return folder / "model"


def test_a_study_has_the_values_of_attribute_batch(root, tmp_path, modules):
    pytest.importorskip("pyarrow")
    found = bench(root, tmp_path, "benchmarks/bench_study.py")
    assert found["not_counted"] == [] and [one["stats"]["rounds"] for one in found["benchmarks"]] == [2, 2]
    assert found["benchmarks"][1]["extra_info"]["error_greatest"] <= 1e-4
    (tmp_path / "study.json").write_text(json.dumps(found))
    assert "| study.run | " in modules("tables").section(tmp_path)


@pytest.mark.slow
def test_contenders_agree_on_a_small_model(root, tmp_path, smollm2, modules):
    """The groups that ask workers, on a model whose answers mean nothing."""
    _, tokenizer = smollm2
    tiny_llama(tmp_path)
    tokenizer.save_pretrained(tmp_path / "model")
    groups = ("attribution", "batch", "graph", "hybrids", "before")
    files = [f"benchmarks/bench_{group}.py" for group in groups]
    others = [one for one in modules("hybrids").MODELS | modules("hybrids").ATTENTION if one != "lfm2"]
    chosen = " and ".join(f"not {one}" for one in ("cp", "gradient", *others))
    found = bench(root, tmp_path, "--model", tmp_path / "model", "-k", chosen, *files)
    without = {"lxt"} if importlib.util.find_spec("lxt") is None else set()
    without |= set() if (root / ".venv" / "before").is_dir() else {".venv/before is not there", "before, which"}
    why = [one["why"] for one in found["not_counted"]]
    assert all(any(word in one for word in without) for one in why)
    assert all(any(word in one for one in why) for word in without)
    for group, length in (("hybrid lfm2", 64), ("before, smollm2", 16)):
        mine = [one for one in found["benchmarks"] if one["group"] == f"{group}, {length} tokens"]
        assert "forward" in {one["extra_info"]["case"] for one in mine} and all(one["stats"]["rounds"] for one in mine)
    needle = (one for one in found["benchmarks"] if not one["group"].startswith(("hybrid", "before")))
    cases = {one["extra_info"]["case"]: one["extra_info"] for one in needle}
    assert cases["ours"]["against"] == "float64" and cases["ours, attribute_batch"]["against"] == "float64"
    assert cases["closed form"]["error_greatest"] < 1e-5
    for group in groups:
        mine = {"graph": ("graph", "transition"), "hybrids": ("hybrid ",)}.get(group, (group,))
        parts = {what: [one for one in found[what] if one["group"].startswith(mine)] for what in KINDS}
        (tmp_path / f"{group}.json").write_text(json.dumps(found | parts))
    section = modules("tables").section(tmp_path)
    for name in ("ours, tolerance", "ours, attribute_batch", "topk 16", "batch packing", "ours, topk 16"):
        assert f" {name} | " in section
    assert "| SmolLM2-135M-Instruct | 16 | " in section
