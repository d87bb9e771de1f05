"""The kernel benchmark as far as a machine without a GPU can take it; on a GPU, that what it would time is right."""

import importlib
import os
import shutil
import subprocess
import sys

import pytest
import torch

# As kernel_cases.py names them on a GPU: it is not imported here, because it needs Triton.
TIMED = [
    *(
        f"attention {part}, head_dim {dim}"
        for dim in (64, 128)
        for part in ("forward", "backward attnlrp", "backward cp")
    ),
    *("linear gamma", "linear epsilon", "gated MLP forward", "gated MLP backward attnlrp", "gated MLP backward cp"),
    *("RMSNorm forward", "RMSNorm forward + residual", "RMSNorm backward", "node relevance"),
    *("activation forward", "activation backward"),
]


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_sentence_says_so(root):
    commands = [[sys.executable, root / "benchmarks" / "gpu.py"]]
    commands += [[sys.executable, root / "benchmarks" / "run.py", "kernels"]]
    if shutil.which("make"):
        commands.append(["make", "--no-print-directory", "-C", root, "gpu", f"PYTHON={sys.executable}"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        sentence, *rest = done.stderr.splitlines()
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
    found = times.measure(60, dry=True)
    assert found["rows"] == [] and found["wrong"] == [
        "doubled: relative error 1, more than 1e-05",
        "absent, 8: RuntimeError: no such kernel",
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("what", TIMED)
def test_what_is_timed_is_right(what, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    times = importlib.import_module("kernel_times")
    builds = {what: build for what, _, build in times.cases(False)}
    assert set(builds) == set(TIMED)
    assert times.fault(times.Machine(False), builds[what]) is None
