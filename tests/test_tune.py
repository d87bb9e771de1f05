"""benchmarks/tune.py without a GPU: what it would time, and what it makes of the times."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from lrp_fast.kernels import common, tiles  # noqa: E402
from lrp_fast.kernels.resources import Resources  # noqa: E402

spec = importlib.util.spec_from_file_location("tune", Path(__file__).parents[1] / "benchmarks" / "tune.py")
tune = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tune)

ON = (9, 0)


@pytest.mark.parametrize("row", tiles.TABLE)
def test_every_row_has_a_launch_to_time(row):
    kernel, prepare = tune.work(row)
    entry = [16] * len(tiles.TABLE[row]["large"][:-2]) + [2, 7]
    table = tiles.replaced(tiles.TABLE, row, ON, entry)
    launches = [case for case in common.record({row: lambda: prepare("meta")(table)}, ON) if case[1] is kernel]
    assert [case[4:] for case in launches] == [(2, 7)]
    assert launches[0][3]["BLOCK_M"] == launches[0][3]["BLOCK_N"] == 16


def test_neighbours_are_one_step_away():
    assert list(tune.neighbours([16, 256, 8, 1])) == [
        [32, 256, 8, 1], [16, 128, 8, 1], [16, 256, 4, 1], [16, 256, 16, 1], [16, 256, 8, 2],
    ]  # fmt: skip


@pytest.fixture
def climb(monkeypatch):
    """``climb(time)``: what `tuned` makes of a row that is [64, 64, 8, 2], on a device where no block may exceed 128,
    and where more than 8 warps spill too much."""
    table = {"row": {"small": [64, 32, 8, 1], "large": [64, 64, 8, 2]}, "other": {"small": [1], "large": [2]}}

    def compiled(row, trial, on):
        m, n, warps, _ = tiles.find(trial, row, on)
        return Resources(10**6 if max(m, n) > 128 else 10**5, 255, 136 if warps > 8 else 128)

    monkeypatch.setattr(tune, "compiled", compiled)
    return lambda time: tune.tuned("row", table, ON, lambda trial: time(*tiles.find(trial, "row", ON)))


def test_what_takes_more_tensor_memory_than_there_is_does_not_fit():
    fits = [tune.fits(Resources(10**5, 255, 0, columns), Resources(10**5, 255, 0), (10, 0)) for columns in (512, 513)]
    assert fits == [True, False]


def test_it_goes_on_while_a_neighbour_is_faster(climb):
    entry, before, after = climb(lambda m, n, warps, stages: 1000 / m + n + 100 / stages)
    assert entry == [128, 16, 8, 5] and before == 1000 / 64 + 64 + 50 and after == 1000 / 128 + 16 + 20


def test_what_does_not_fit_or_spills_or_errs_is_left_alone(climb):
    timed = []

    def time(m, n, warps, stages):
        timed.append((m, n, warps, stages))
        return None if stages == 1 else 1000 / m / n / warps  # more is better, and one stage gives wrong results

    entry, _, _ = climb(time)
    assert entry[:3] == [128, 128, 8]
    assert all(max(m, n) <= 128 and warps <= 8 for m, n, warps, _ in timed) and len(timed) == len(set(timed))


def test_a_gain_within_the_noise_changes_nothing(climb):
    assert climb(lambda *entry: 0.99 if entry[0] == 32 else 1.0) == ([64, 64, 8, 2], 1.0, 1.0)


def test_the_winner_is_written_for_the_exact_capability_alone(climb, monkeypatch, tmp_path, capsys):
    table = {"row": {"small": [64, 32, 8, 1], "large": [64, 64, 8, 2]}, "other": {"small": [1], "large": [2]}}
    monkeypatch.setattr(tiles, "TABLE", table)
    monkeypatch.setattr(tune, "FILE", tmp_path / "tiles.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: ON)
    monkeypatch.setattr(tune, "timer", lambda row, table: lambda trial: tiles.find(trial, row, ON)[1])
    tune.main("r*", None)
    written = json.loads((tmp_path / "tiles.json").read_text())
    assert written == {"row": table["row"] | {"9.0": [64, 16, 8, 2]}, "other": table["other"]}
    assert capsys.readouterr().out == "row: [64, 64, 8, 2] 64.000 ms, [64, 16, 8, 2] 16.000 ms\n"


def test_same_means_up_to_rounding():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        rounded = x.to(dtype)
        assert tune.same((rounded, None), (rounded * (1 + torch.finfo(dtype).eps), None))
        assert not tune.same((rounded, None), (rounded.clone().index_fill_(0, torch.tensor([3]), 0), None))
        assert not tune.same((rounded * float("nan"),), (rounded,))


def test_what_it_cannot_do_it_says():
    with pytest.raises(SystemExit, match=r"no row of tiles.json matches 'nothing'"):
        tune.main("nothing", ON)
    with pytest.raises(SystemExit, match="no limit of shared memory is known for sm_75"):
        tune.main("*", (7, 5))
    with pytest.raises(ValueError, match="does not know what the row 'sideways' is for"):
        tune.work("sideways")


@pytest.mark.slow
def test_listing_what_would_be_timed_takes_a_compiler_alone(capsys):
    tune.main("gamma_backward, 2 bytes, few rows", (8, 9))
    assert capsys.readouterr().out.startswith(
        "gamma_backward, 2 bytes, few rows: [16, 64, 128, 4, 3], to be timed beside [["
    )
