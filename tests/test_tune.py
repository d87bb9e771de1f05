"""The tuner without a GPU: what it would time, and what it makes of the times."""

import importlib
import itertools
import json

import pytest
import torch

pytest.importorskip("triton")

from lrp_fast import operations  # noqa: E402
from lrp_fast.kernels import common, tiles  # noqa: E402
from lrp_fast.kernels.resources import Resources  # noqa: E402
from lrp_fast.ops import measured  # noqa: E402
from lrp_fast.tuning import Bench, bench, climb, launches, ranked, tune  # noqa: E402

ON = (9, 0)
DEVICE = measured.Device("A device", ON, 232448)


@pytest.mark.parametrize("row", tiles.TABLE)
def test_every_row_has_a_launch_to_time_and_an_operation_to_check(row):
    kernel, prepare = launches.work(row)
    entry = [16] * len(tiles.TABLE[row]["large"][:-2]) + [2, 7]
    table = tiles.replaced(tiles.TABLE, row, ON, entry)
    found = [case for case in common.record({row: lambda: prepare("meta")(table)}, ON) if case[1] is kernel]
    assert [case[4:] for case in found] == [(2, 7)]
    assert found[0][3]["BLOCK_M"] == found[0][3]["BLOCK_N"] == 16
    operation, form, head_dim, dtype = launches.case_of(row)
    assert operations.case(operation, form, head_dim).form == form and f"{dtype.itemsize} bytes" in row


def test_a_row_of_nobody_is_not_known():
    with pytest.raises(ValueError, match="does not know what the row 'sideways' is for"):
        launches.work("sideways")


def test_neighbours_are_one_step_away():
    assert list(climb.neighbours([16, 256, 8, 1])) == [
        [32, 256, 8, 1], [16, 128, 8, 1], [16, 256, 4, 1], [16, 256, 16, 1], [16, 256, 8, 2],
    ]  # fmt: skip


def compiled(row, table, on):
    """On a device where no block may exceed 128, and where more than 8 warps spill too much."""
    m, n, *_, warps, _ = tiles.find(table, row, on)
    return Resources(10**6 if max(m, n) > 128 else 10**5, 255, 136 if warps > 8 else 128)


def a_bench(seconds=1000.0, ticks=None, **given):
    clock = itertools.count().__next__ if ticks is None else ticks
    return Bench(torch.device("cpu"), DEVICE, seconds, compiled=compiled, clock=clock, **given)


def climbed(time, seconds=1000.0):
    """What `climbed` makes of a row that is [64, 64, 8, 2]."""
    table = {"row": {"small": [64, 32, 8, 1], "large": [64, 64, 8, 2]}, "other": {"small": [1], "large": [2]}}
    return climb.climbed("row", table, a_bench(seconds), lambda trial: time(*tiles.find(trial, "row", ON)))


def test_what_takes_more_tensor_memory_than_there_is_does_not_fit():
    most = Resources(10**5, 255, 0)
    assert [climb.fits(Resources(10**5, 255, 0, columns), most, 10**5) for columns in (512, 513)] == [True, False]
    assert not climb.fits(Resources(10**5 + 1, 255, 0), most, 10**5) and not climb.fits(None, most, 10**5)


def test_it_goes_on_while_a_neighbour_is_faster():
    entry, before, after = climbed(lambda m, n, warps, stages: 1000 / m + n + 100 / stages)
    assert entry == [128, 16, 8, 5] and before == 1000 / 64 + 64 + 50 and after == 1000 / 128 + 16 + 20


def test_what_does_not_fit_or_spills_or_errs_is_left_alone():
    timed = []

    def time(m, n, warps, stages):
        timed.append((m, n, warps, stages))
        return None if stages == 1 else 1000 / m / n / warps  # more is better, and one stage gives wrong results

    entry, _, _ = climbed(time)
    assert entry[:3] == [128, 128, 8]
    assert all(max(m, n) <= 128 and warps <= 8 for m, n, warps, _ in timed) and len(timed) == len(set(timed))


def test_a_gain_within_the_noise_changes_nothing():
    assert climbed(lambda *entry: 0.99 if entry[0] == 32 else 1.0) == ([64, 64, 8, 2], 1.0, 1.0)


def test_it_ends_with_its_time_and_keeps_what_it_has():
    entry, before, after = climbed(lambda m, n, warps, stages: 1000 / m + n + 100 / stages, seconds=9)
    assert entry != [128, 16, 8, 5] and after < before


def test_a_row_whose_own_entry_errs_has_no_time():
    assert climbed(lambda *entry: None) is None


def test_same_means_up_to_rounding():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        rounded = x.to(dtype)
        assert climb.same((rounded, None), (rounded * (1 + torch.finfo(dtype).eps), None), 4096)
        assert not climb.same((rounded, None), (rounded.clone().index_fill_(0, torch.tensor([3]), 0), None), 4096)
        assert not climb.same((rounded * float("nan"),), (rounded,), 4096)


def test_the_most_important_rows_come_first():
    rows = ranked(tiles.TABLE, (128, 64))
    assert rows[:8] == [f"{s}, head_dim {d}, 2 bytes" for d in (128, 64) for s in ("dkv", "dq", "forward", "edges")]
    assert rows[8] == "gamma_forward, 2 bytes" and all("2 bytes" in row for row in rows)
    assert set(ranked(tiles.TABLE, (64, 128, 256))) | set(ranked(tiles.TABLE, (64, 128, 256), itemsize=4)) == set(
        tiles.TABLE
    )
    assert ranked(tiles.TABLE, (80,)) == ranked(tiles.TABLE, (128,))
    assert ranked(tiles.TABLE, (256,), capped=True)[0] == "dkv capped, head_dim 256, 2 bytes"
    assert ranked(tiles.TABLE, (64,), itemsize=4)[:2] == ["dkv, head_dim 64, 4 bytes", "dq, head_dim 64, 4 bytes"]
    assert ranked(tiles.TABLE, (64,), done=("dkv, head_dim 64, 2 bytes",))[-1] == "dkv, head_dim 64, 2 bytes"
    assert not [row for row in ranked(tiles.TABLE, (512,)) if "head_dim" in row]


RIGHT = operations.Held("", "", "bfloat16", "triton", (), 0.1, 0.2, True)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(time, checks, vendor)``: lines of a tuner of head_dim 64 whose rows take ``time(row, entry)``. Its
    operations are right unless ``checks`` says otherwise, and PyTorch's attentions take ``vendor`` and ``cudnn``
    milliseconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def call(time, checks=lambda case, impl: RIGHT, vendor=2.0, cudnn=3.0, pattern=None, **given):
        held = lambda case, device, dtype, impl: checks(case, impl)  # noqa: E731
        monkeypatch.setattr(operations, "hold", held)
        timed = lambda row, table, bench: lambda trial: time(row, tiles.find(trial, row, ON))  # noqa: E731
        monkeypatch.setattr(climb, "timed", timed)
        names = ("attention", "attention backward")
        large = [operations.Case(name, "", lambda generator: (), lambda impl: impl, None, ()) for name in names]
        monkeypatch.setattr(importlib.import_module("lrp_fast.tuning.tune"), "cases_of", lambda form: large)
        stopwatch = lambda call: {"triton": 1.5, "vendor": vendor, "cudnn": cudnn}.get(call, 1.5)  # noqa: E731
        return tune(a_bench(milliseconds=stopwatch, **given), (64,), pattern=pattern)

    return call


def written():
    return json.loads(measured.file_of(DEVICE).read_text())


def test_what_is_fastest_is_written_and_read(machine):
    found = list(machine(lambda row, entry: entry[0] + entry[1]))
    assert not any(step.wrong for step in found)
    told = [step.told for step in found]
    times = "triton 1.500 ms, vendor 2.000 ms, cudnn 3.000 ms"
    assert told[0] == f"attention backward, head_dim 64, 2 bytes: {times}: triton"
    shipped = tiles.find(tiles.TABLE, "dkv, head_dim 64, 2 bytes", DEVICE.capability)
    best = [16, 16, *shipped[2:]]
    assert told[2] == f"dkv, head_dim 64, 2 bytes: {shipped} {sum(shipped[:2])}.000 ms, {best} 32.000 ms"
    assert [line.partition(",")[0] for line in told[-2:]] == ["attention backward", "attention forward"]  # once more
    read = measured.read(DEVICE, tiles.TABLE)
    assert read.state == "used" and set(read.measured.tiles) == set(ranked(tiles.TABLE, (64,)))
    assert read.measured.tiles["dkv, head_dim 64, 2 bytes"] == measured.Tile(best, 10**5)
    assert set(read.measured.paths) == {f"attention {step}, head_dim 64, 2 bytes" for step in ("backward", "forward")}
    assert set(read.measured.paths.values()) == {"triton"}
    again = [step.told for step in machine(lambda row, entry: entry[0] + entry[1])]
    assert f"dkv, head_dim 64, 2 bytes: {best} 32.000 ms, none better" in again


def test_when_the_time_is_over_what_was_found_is_kept(machine):
    ticks = itertools.count()
    found = list(machine(lambda row, entry: entry[0] + entry[1], seconds=40, ticks=lambda: next(ticks)))
    assert 3 <= len(found) < 8 and 1 <= len(written()["tiles"]) < 6
    more = list(machine(lambda row, entry: entry[0] + entry[1], seconds=40, ticks=lambda: next(ticks) % 10**6 - 60))
    assert set(written()["tiles"]) > {"dkv, head_dim 64, 2 bytes"} and more


def test_an_interruption_keeps_what_was_found(machine):
    def time(row, entry):
        if row.startswith("dq"):
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        list(machine(time))
    assert list(written()["tiles"]) == ["dkv, head_dim 64, 2 bytes"] and len(written()["paths"]) == 2


def test_what_is_wrong_is_not_timed(machine):
    wrong = RIGHT._replace(error=0.5)

    def checks(case, impl):
        return wrong if case.operation == "attention backward" and impl == "triton" else RIGHT

    found = list(machine(lambda row, entry: 1.0, checks))
    failed = [step.told.partition(", head")[0] for step in found if step.wrong]
    assert failed == ["attention backward", "dkv", "dq", "masses", "dkv gamma", "dq gamma", "dkv capped", "dq capped"]
    assert found[0].told.endswith("its error is 5.0e-01 where 2.0e-01 is allowed (lrp-fast doctor tells more)")
    assert not any(row.startswith("d") for row in written()["tiles"])


def test_a_vendor_that_is_wrong_or_absent_is_not_chosen(machine):
    by = {"wrong": RIGHT._replace(error=0.5), "absent": RIGHT._replace(failed="ValueError: it does not serve")}
    for name, held in by.items():
        checks = lambda case, impl, held=held: RIGHT if impl == "triton" else held  # noqa: E731
        found = list(machine(lambda row, entry: 1.0, checks, vendor=0.1))
        assert found[0].wrong == (name == "wrong") and held.failed in found[0].told
        assert set(written()["paths"].values()) == ({"triton"} if name == "wrong" else set())
        measured.file_of(DEVICE).unlink()


def test_of_two_vendors_the_faster_that_is_there_is_chosen(machine):
    absent = RIGHT._replace(failed="ValueError: it does not serve")
    for missing, best in ((None, "cudnn"), ("cudnn", "vendor"), ("vendor", "cudnn")):
        checks = lambda case, impl, missing=missing: absent if impl == missing else RIGHT  # noqa: E731
        found = list(machine(lambda row, entry: 1.0, checks, vendor=1.0, cudnn=0.5))
        assert found[0].told.endswith(f": {best}") and set(written()["paths"].values()) == {best}
        assert (f"{missing}: {absent.failed}" in found[0].told) == (missing is not None) and not found[0].wrong


def test_no_row_of_that_name_is_told():
    with pytest.raises(ValueError, match=r"no row of tiles.json is named like 'nothing'"):
        list(tune(a_bench(), (64,), pattern="nothing"))


def test_rows_may_be_named_of_any_size(machine):
    row = "dkv, head_dim 256, 4 bytes"
    assert [step.told.partition(":")[0] for step in machine(lambda row, entry: 1.0, pattern=row)] == [row]


@pytest.mark.slow
def test_the_compiler_alone_says_what_fits():
    row = "gamma_backward, 2 bytes, few rows"
    found = bench.compiled(row, tiles.TABLE, (8, 9))
    assert climb.fits(found, found, 101376) and not climb.fits(found, found, found.shared - 1)
    too_many = tiles.replaced(tiles.TABLE, row, (8, 9), [64, 128, 128, 4, 4])
    assert not climb.fits(bench.compiled(row, too_many, (8, 9)), found, 101376)
