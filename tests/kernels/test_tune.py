"""The tuner from end to end, with launches that happen and a stopwatch that does not run."""

import dataclasses
import importlib
import itertools
import math

import pytest
import torch
import triton

from lrp_fast.kernels import tiles
from lrp_fast.kernels.resources import Resources
from lrp_fast.operations import SMALL
from lrp_fast.ops import measured
from lrp_fast.tuning import Bench, climb, tune

ON = (8, 0)  # as what a CPU counts for
DEVICE = measured.Device("interpreter", ON, 166912)

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="a dry run, in the interpreter")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in ("launches", "tune"):
        own = importlib.import_module(f"lrp_fast.tuning.{module}")
        monkeypatch.setattr(own, "DTYPES", {2: torch.float16, 4: torch.float32})
    times = itertools.count(100, -10)

    def milliseconds(call):
        call()
        return float(next(times))  # each is faster than the one before

    ran_out = itertools.count().__next__
    resources = lambda row, table, on: Resources(10**5, 255, 0)  # noqa: E731
    return Bench(torch.device("cpu"), DEVICE, math.inf, 48, SMALL, milliseconds, resources, ran_out)


@pytest.mark.parametrize("row", ["forward, head_dim 64, 2 bytes", "gamma_backward, 2 bytes, few rows"])
def test_a_row_is_checked_then_timed_then_written(row, bench, monkeypatch):
    monkeypatch.setattr(climb, "neighbours", lambda entry: [[32, *entry[1:]]])  # one will do
    (step,) = tune(bench, (64,), pattern=row)
    before = tiles.find(tiles.TABLE, row, ON)
    assert step.told == f"{row}: {before} 100.000 ms, {[32, *before[1:]]} 90.000 ms" and not step.wrong
    assert measured.read(DEVICE, tiles.TABLE).measured.tiles == {row: measured.Tile([32, *before[1:]], 10**5)}


def test_a_neighbour_with_other_results_is_not_taken(bench, monkeypatch):
    row, own = "forward, head_dim 64, 2 bytes", climb.work

    def wrong(row, tokens):
        kernel, prepare = own(row, tokens=tokens)

        def prepared(device):
            run = prepare(device)
            return lambda table: tuple(
                None if x is None else x * (1 + (tiles.find(table, row, ON)[0] == 32)) for x in run(table)
            )

        return kernel, prepared

    monkeypatch.setattr(climb, "neighbours", lambda entry: [[32, *entry[1:]]])
    monkeypatch.setattr(climb, "work", wrong)
    (step,) = tune(bench, (64,), pattern=row)
    assert step.told.endswith("100.000 ms, none better")


def test_attentions_come_first_and_where_there_is_nobody_to_choose_from_it_is_told(bench, monkeypatch):
    monkeypatch.setattr(climb, "neighbours", lambda entry: [])
    told = [step.told for step in tune(dataclasses.replace(bench, end=4), (64,))]
    assert told[0].startswith("attention backward, head_dim 64, 2 bytes: nobody to choose from, vendor: ValueError: ")
    assert told[1].startswith("attention forward, head_dim 64, 2 bytes: nobody to choose from, vendor: ValueError: ")
    assert told[2] == "dkv, head_dim 64, 2 bytes: [32, 128, 8, 2] 100.000 ms, none better" and len(told) == 3
