"""`lrp-fast tune`: what it asks the tuner for, and what it says where there is nothing to tune."""

import pytest
import torch

pytest.importorskip("triton")

from lrp_fast import tuning  # noqa: E402
from lrp_fast.cli import main, tune  # noqa: E402
from lrp_fast.ops import backend, measured  # noqa: E402
from lrp_fast.tuning import Bench, Step  # noqa: E402

DEVICE = measured.Device("A device", (9, 0), 232448)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(*steps)``: a CUDA device on which the tuner finds these, or raises; gives what it was asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = {}

    def call(*steps):
        def found(bench, dims, **given):
            asked.update(given, dims=dims, left=bench.left())
            for step in steps:
                if isinstance(step, BaseException):
                    raise step
                yield step

        monkeypatch.setattr(tune, "read_device", lambda name: torch.device("cuda"))
        monkeypatch.setattr(backend, "without_triton", lambda device: None)
        bench = lambda device, seconds: Bench(device, DEVICE, seconds, clock=lambda: 0.0)  # noqa: E731
        monkeypatch.setattr(tuning, "bench_of", bench)
        monkeypatch.setattr(tuning, "tune", found)
        return asked

    return call


def test_what_is_found_is_printed_as_it_comes(machine, capsys):
    asked = machine(Step("a row: faster"), Step("another"))
    assert main(["tune"]) == 0
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    assert lines == ["a row: faster", "another"] and not err
    assert last.startswith("in ") and "lrp_fast/tuned-a-device.json, which is read from now on; delete it" in last
    assert asked == {"dims": (128, 64), "pattern": None, "left": 120.0}
    assert main(["tune", "--seconds", "7", "--rows", "dkv*"]) == 0
    assert asked["pattern"] == "dkv*" and asked["left"] == 7


def test_a_model_says_what_is_tuned(machine, tiny, tmp_path):
    asked = machine()
    tiny("gemma2").config.save_pretrained(tmp_path / "capped")
    tiny("llama", torch.bfloat16).config.save_pretrained(tmp_path / "half")
    assert main(["tune", str(tmp_path / "capped")]) == 0
    assert asked["dims"] == (24,) and asked["capped"]
    assert main(["tune", str(tmp_path / "half")]) == 0
    assert asked["dims"] == (16,) and not asked["capped"] and asked["itemsize"] == 2
    assert main(["tune", str(tmp_path / "nothing")]) == 2


def test_wrong_results_and_interruptions_are_statuses(machine, capsys):
    machine(Step("a row"), Step("another: not timed", wrong=True), Step("a third"))
    assert main(["tune"]) == 1 and "a third" in capsys.readouterr().out
    machine(Step("a row"), KeyboardInterrupt())
    assert main(["tune"]) == 130
    out, err = capsys.readouterr()
    assert out == "a row\n" and "what was found until here is in " in err and "tuned-a-device.json" in err
    machine(OSError(28, "cannot write: free some space"))
    assert main(["tune"]) == 1 and "free some space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "0"], "--seconds 0 leaves no time: give more than 0"),
        (["--device", "cpu"], "there is nothing to tune on --device cpu: tiles are those of a CUDA device"),
        (["--device", "toaster"], "--device toaster cannot be used: "),
    ],
)
def test_what_cannot_be_tuned_is_told(arguments, words, capsys):
    assert main(["tune", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"lrp-fast: {words}") and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_sentence_says_so(capsys):
    for command in (["tune"], ["doctor", "--device", "cuda"]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert not out and "--device cuda cannot be used: " in err and "; name cpu or a CUDA device" in err
        assert err.count("\n") == 1


def test_a_device_of_another_age_has_nothing_to_tune_and_says_so_to_the_doctor(machine, monkeypatch, capsys):
    own = backend.without_triton
    machine()
    monkeypatch.setattr(backend, "without_triton", own)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    own.cache_clear()
    assert main(["tune"]) == 2
    err = capsys.readouterr().err
    assert "this device has compute capability 7.5, and Triton's kernels are for 8.0 and higher: PyTorch" in err
    own.cache_clear()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed: " in own(torch.device("cuda")) and "install triton" in own(torch.device("cuda"))
    own.cache_clear()
