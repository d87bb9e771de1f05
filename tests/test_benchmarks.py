"""The benchmarks as far as a machine without a GPU can take them; on a GPU, that the kernels they time are right."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

# As kernel_cases.py names them on a GPU: it is not imported here, because it needs Triton.
TIMED = [
    *(
        f"attention {part}, head_dim {dim}"
        for dim in (64, 128)
        for part in ("forward", "backward attnlrp", "backward cp", "edges")
    ),
    *("linear gamma", "linear epsilon", "gated MLP forward", "gated MLP backward attnlrp", "gated MLP backward cp"),
    *("RMSNorm forward", "RMSNorm forward + residual", "RMSNorm backward", "node relevance"),
    *("activation forward", "activation backward"),
    *(f"attention {part}, head_dim 128, float32" for part in ("forward", "backward attnlrp", "backward cp", "edges")),
    *("linear gamma, float32", "linear epsilon, float32"),
]


@pytest.mark.slow
def test_a_dry_run_times_every_case_and_writes_nothing(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    before = {path: path.read_bytes() for path in (root / "benchmarks" / "results").iterdir()}
    command = [sys.executable, root / "benchmarks" / "run.py", "kernels", "--dry-run"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "WRONG" not in done.stdout and "left out" not in done.stdout and "failed" not in done.stdout
    cases = importlib.import_module("kernel_cases")
    for what, _, _ in cases.cases(True):
        assert f"\n{what} " in done.stdout
    assert {path: path.read_bytes() for path in (root / "benchmarks" / "results").iterdir()} == before


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_sentence_says_so(root):
    commands = [[sys.executable, root / "benchmarks" / "gpu.py"]]
    commands += [[sys.executable, root / "benchmarks" / "run.py", what] for what in ("kernels", "model", "profile")]
    if shutil.which("make"):
        commands.append(["make", "--no-print-directory", "-C", root, "gpu", f"PYTHON={sys.executable}"])
    for command in commands:
        # what make tells the makes below it: with it a make in a make prefixes its lines otherwise
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
        # but for what torchao says, where it is installed, when transformers imports it
        sentence, *rest = (line for line in done.stderr.splitlines() if not re.search("torchao|_pytree.py", line))
        assert done.returncode == 2 and not done.stdout and "no" in sentence and "CUDA device" in sentence
        assert all(line.startswith("make:") for line in rest)


def test_a_wrong_kernel_is_not_timed(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    times = importlib.import_module("kernel_times")

    def doubled(machine, n):
        x = machine.draw(n, 4)
        return times.Problem({"ours": lambda: lambda: 2 * x}, lambda: (x.double(),), 1.0, "GB/s")

    def absent(machine, n):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(times, "cases", lambda dry: [("doubled", 8, doubled), ("absent", 8, absent)])
    found = times.measure(60, True, lambda found: None)
    assert found["rows"] == [] and found["wrong"] == [
        "doubled: relative error 1, more than 1e-05",
        "absent, 8: RuntimeError: no such kernel",
    ]


def test_every_case_is_kept_as_it_ends_and_has_a_deadline(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    times = importlib.import_module("kernel_times")

    def quick(machine, n):
        x = machine.draw(n, 4)
        return times.Problem({"ours": lambda: lambda: x.clone()}, lambda: (x.double(),), 1.0, "GB/s")

    def endless(machine, n):
        while n == 8:
            time.sleep(0.01)
        return quick(machine, n)

    listed = [("quick", 8, quick), ("endless", 8, endless), ("endless", 9, endless), ("quick", 9, quick)]
    monkeypatch.setattr(times, "cases", lambda dry: listed)
    monkeypatch.setattr(times, "CASE_SECONDS", 0.2)
    kept = []
    found = times.measure(60, True, lambda found: kept.append(len(found["rows"])))
    assert kept == [1, 1, 2, 3] and found["left_out"] == ["endless, 8 (stopped after 0.2 s)"] and found["wrong"] == []
    assert times.signal.getitimer(times.signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_order_of_contenders_alternates(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    times = importlib.import_module("kernel_times")
    orders = []

    def one_round(calls, cache):
        orders.append("".join(name for name, _ in calls))
        return {name: 100.0 + len(orders) for name, _ in calls}

    monkeypatch.setattr(times, "one_round", one_round)
    monkeypatch.setattr(times.torch, "empty", lambda *_, **__: None)
    found = times.milliseconds({"a": None, "b": None}, 0.8, dry=False)
    assert orders == ["ab", "ab", "ba", "ab"] and found == {"a": [102, 103, 104], "b": [102, 103, 104]}


def test_figures_without_a_commit_say_so_once(root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    runner = importlib.import_module("run")
    monkeypatch.setattr(runner.shutil, "which", lambda name: None)
    runner.provenance.cache_clear()
    assert [runner.provenance()["commit"] for _ in range(2)] == [None, None]
    assert runner.provenance("abc")["commit"] == "abc"
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "no commit goes with these figures" in sentence and "--commit" in sentence
    runner.provenance.cache_clear()


def test_make_gpu_ends_all_that_a_part_started(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    gpu = importlib.import_module("gpu")
    script = "sleep 60 & echo $! > child; wait"
    assert gpu.run(["bash", "-c", script], time.monotonic() + 2, cwd=tmp_path) is None
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and " Z " not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or " Z " in child.read_text()
    assert gpu.run(["bash", "-c", "exit 3"], time.monotonic() + 10) == 3


@pytest.mark.slow
def test_make_gpu_asks_the_doctor(root, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    gpu = importlib.import_module("gpu")
    assert gpu.run_doctor(dict(os.environ), time.monotonic() + 300, dry_run=True)
    assert "operations are as they are defined, within rounding." in capfd.readouterr().out
    assert not gpu.run_doctor(dict(os.environ), time.monotonic(), dry_run=True)
    assert "doctor: stopped when its time was over" in capfd.readouterr().out


def test_make_gpu_takes_as_many_processes_as_fit_into_the_device(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    gpu = importlib.import_module("gpu")
    free = {80: 14, 24: 4, 8: 1, 1: 1}
    assert {size: gpu.fitting(16, size * 2**30) for size in free} == free and gpu.fitting(3, 2**40) == 3


@pytest.fixture
def model_times(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    module = importlib.import_module("model_times")
    monkeypatch.setattr(module, "lxt", lambda: (None, "not measured: no LXT"))  # it patches classes for good
    return module


MODEL_DRY_RUN = """
import json, model_times
kept = []
model_times.measure(60, True, lambda found: kept.append(json.dumps(found)))
print("[" + ",".join(kept) + "]")
"""


def test_the_model_benchmark_keeps_every_case_as_it_ends(root):
    command = [sys.executable, "-c", MODEL_DRY_RUN]
    done = subprocess.run(command, cwd=root / "benchmarks", capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)
    found = kept[-1]
    assert found["wrong"] == found["left_out"] == []
    qwen = ["forward", "ours", "ours_graph"]
    llama = qwen + ["lxt_checkpointing"] * (importlib.util.find_spec("lxt") is not None)
    many = [qwen, qwen, llama, llama]
    assert [len(one["rows"]) for one in kept] == [n for n, names in enumerate(many, 1) for _ in names]
    for row, names in zip(found["rows"], many, strict=True):
        assert list(row)[3:] == names
        assert row["ours"]["share_of_ceiling"] > 0 and row["ours"]["ratio"] > 0
        assert row["ours_graph"]["relevance_gap_to_ours"] < 1e-5 and row["ours_graph"]["over_ours"] > 0
        if "lxt_checkpointing" in row:  # float32: the same rules in another order of rounding
            assert row["lxt_checkpointing"]["relevance_gap_to_ours"] < 1e-5


def test_the_model_benchmark_ends_with_its_time(model_times):
    found = model_times.measure(0, True, lambda found: None)
    assert len(found["left_out"]) == 12
    assert found["left_out"][-2:] == ["ours, Llama-3.1-8B, 32", "ours with a graph, Llama-3.1-8B, 32"]
    assert all(name not in row for row in found["rows"] for name in model_times.NAMES)
    assert "LXT: not measured: no LXT" in model_times.table(found)


def test_the_model_benchmark_tells_what_failed(model_times, monkeypatch):
    def contenders(model, ids, peer, planned):
        def raising(error):
            raise error

        return {"forward": lambda: raising(torch.OutOfMemoryError()), "ours": lambda: raising(ValueError("not finite"))}

    monkeypatch.setattr(model_times, "contenders", contenders)
    found = model_times.measure(60, True, lambda found: None)
    assert [row["forward"] for row in found["rows"]] == [{"failed": "out of memory"}] * 4
    assert found["wrong"][:2] == [f"ours, Qwen3-4B, {n}: ValueError: not finite" for n in (16, 32)]
    assert "WRONG: ours, Llama-3.1-8B, 16: ValueError: not finite" in model_times.table(found)


def test_the_profile_names_what_takes_the_time(root):
    command = [sys.executable, root / "benchmarks" / "run.py", "profile", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    forward, attribution = done.stdout.split("attribution, 32 tokens: ")
    assert forward.startswith("forward, 32 tokens: ")
    assert "_AttentionBackward" in attribution and "_AttentionBackward" not in forward


@pytest.mark.gpu
@pytest.mark.parametrize("what", TIMED)
def test_what_is_timed_is_right(what, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    times = importlib.import_module("kernel_times")
    builds = {what: build for what, _, build in times.cases(False)}
    assert set(builds) == set(TIMED)
    assert times.fault(times.Machine(False), builds[what]) is None
