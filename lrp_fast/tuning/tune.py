"""What is measured, in which order, and what becomes of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from .. import operations
from ..operations import Held
from ..operations.attention import Form, cases_of
from ..ops import backend, measured
from ..ops.measured import Measured, Tile
from . import climb
from .bench import Bench
from .launches import DTYPES, case_of

_PATHS = ("triton", "vendor", "cudnn")
_MAIN = ("dkv", "dq", "forward", "edges")
_FORMS = (
    "masses", "dkv gamma", "dq gamma", "forward gamma", "dkv capped", "dq capped", "forward capped", "edges parts",
    "edges gamma",
)  # fmt: skip
_GAMMA = [f"gamma_{step}, {{}} bytes{few}" for few in ("", ", few rows") for step in ("forward", "backward")]


class Step(NamedTuple):
    """One thing that was measured, in a line. wrong: it was not, because results were wrong."""

    told: str
    wrong: bool = False


def tune(
    bench: Bench, dims: tuple[int, ...], *, itemsize: int = 2, capped: bool = False, pattern: str | None = None
) -> Iterator[Step]:
    """Measures who computes attention of these head_dims, then the tiles of `ranked` rows, until the time is over.

    Whatever is found is written at once, so that whoever stops in between keeps it. What had been measured before
    stays where nothing new is found.

    Args:
        pattern: of names of rows, whatever ``dims`` are: these alone, and not who computes attention.

    Raises:
        ValueError: if no row has such a name.
        OSError: if the file cannot be written.
    """
    tiles, on = backend.kernels("tiles"), bench.on.capability
    found = measured.read(bench.on, tiles.TABLE).measured
    kept = Measured(dict(found.tiles), dict(found.paths))
    table = tiles.TABLE
    for row, tile in kept.tiles.items():
        table = tiles.replaced(table, row, on, tile.entry)
    if pattern is None:
        rows = ranked(table, dims, itemsize=itemsize, capped=capped, done=tuple(kept.tiles))
    else:
        rows = [row for row in table if fnmatchcase(row, pattern)]
    if not rows:
        raise ValueError(f"no row of tiles.json is named like {pattern!r}")
    attentions = _attentions(dims) if pattern is None and itemsize == 2 else []
    passes = functools.cache(functools.partial(_held, bench))

    def measured_paths(names: list[str]) -> Iterator[Step]:
        for name in names:
            if bench.left() > 0:
                step, path = _path(name, bench, passes)
                if path is not None:
                    kept.paths[name] = path
                    _write(bench, kept)
                yield step

    yield from measured_paths(attentions)
    changed = set()
    for row in rows:
        if bench.left() <= 0:
            break
        if not (check := passes(*case_of(row), "triton")).passed:
            yield Step(f"{row}: not timed, {_wrong(check)}", wrong=True)
            continue
        entry = tiles.find(table, row, on)
        climb_ended = climb.climbed(row, table, bench, climb.timed(row, table, bench))
        if climb_ended is None:
            yield Step(f"{row}: not timed, two calls differ by more than rounding", wrong=True)
            continue
        best, before, after = climb_ended
        table = tiles.replaced(table, row, on, best)
        taken = bench.compiled(row, table, on)
        kept.tiles[row] = Tile(best, 0 if taken is None else taken.shared)
        _write(bench, kept)
        if best == entry:
            yield Step(f"{row}: {entry} {before:.3f} ms, none better")
        else:
            changed.add(row)
            yield Step(f"{row}: {entry} {before:.3f} ms, {best} {after:.3f} ms")
    # Tiles that have become faster may have changed who is.
    yield from measured_paths([name for name in attentions if changed.intersection(_rows_of(name))])


def _held(bench: Bench, operation: str, form: str, head_dim: int, dtype: torch.dtype, impl: str) -> Held:
    return operations.hold(operations.case(operation, form, head_dim, bench.size), bench.device, dtype, impl)


def _write(bench: Bench, kept: Measured) -> None:
    measured.write(bench.on, kept)
    backend.read_again()


def ranked(
    table: dict, dims: tuple[int, ...], *, itemsize: int = 2, capped: bool = False, done: tuple[str, ...] = ()
) -> list[str]:
    """The rows of ``table`` for attentions of these head_dims, and for linear maps, the most important first.

    Args:
        dims: whose rows are those of the next power of two.
        itemsize: bytes of an element.
        capped: whether scores have a soft-cap: the rows for that come first.
        done: rows that were measured before: they come last.
    """
    padded = _padded(dims)
    main, forms = (
        [f"{step}, head_dim {dim}, {itemsize} bytes" for dim in padded for step in steps] for steps in (_MAIN, _FORMS)
    )
    first = [row for row in forms if capped and " capped" in row]
    listed = [*first, *main, *(row.format(itemsize) for row in _GAMMA), *(row for row in forms if row not in first)]
    return sorted((row for row in listed if row in table), key=lambda row: row in done)


def _padded(dims: tuple[int, ...]) -> list[int]:
    """As rows name them."""
    block_d = backend.kernels("attention").arguments.block_d
    return list(dict.fromkeys(map(block_d, dims)))


def _attentions(dims: tuple[int, ...]) -> list[str]:
    """What PyTorch has kernels of its own for, as files of measurements name it."""
    names = [f"attention {step}, head_dim {dim}, 2 bytes" for dim in _padded(dims) for step in ("backward", "forward")]
    return [name for name in names if _rows_of(name)[0] in backend.kernels("tiles").TABLE]


def _rows_of(name: str) -> list[str]:
    """The rows of tiles.json that an attention's own kernels are launched by."""
    operation, _, rest = name.partition(",")
    return [f"{step},{rest}" for step in (("forward",) if operation == "attention forward" else ("dkv", "dq"))]


def _path(name: str, bench: Bench, passes) -> tuple[Step, str | None]:
    """Who is faster at an attention, of those whose results are right; None where there is nobody to choose from."""
    step, head_dim, _ = name.removeprefix("attention ").split(", ")
    operation, head_dim = "attention" + " backward" * (step == "backward"), int(head_dim.removeprefix("head_dim "))
    checks = {path: passes(operation, f"attnlrp, head_dim {head_dim}", head_dim, DTYPES[2], path) for path in _PATHS}
    told = [f"{path}: {_wrong(check)}" for path, check in checks.items() if not check.passed]
    if not checks["triton"].passed:
        return Step(f"{name}: not compared, {'; '.join(told)}", wrong=True), None
    if any(not check.passed and not check.failed for check in checks.values()):
        return Step(f"{name}: triton, for {'; '.join(told)}", wrong=True), "triton"
    right = [path for path, check in checks.items() if check.passed]  # the others are not there, or do not serve
    if right == ["triton"]:
        return Step(f"{name}: nobody to choose from, {'; '.join(told)}"), None
    large = Form("", head_dim, bench.tokens, bench.tokens, heads=16, kv_heads=4)
    (case,) = (case for case in cases_of(large) if case.operation == operation)
    drawn = case.draw(torch.Generator().manual_seed(0))
    inputs = [None if x is None else x.to(bench.device, DTYPES[2]) for x in drawn]
    times = {path: bench.milliseconds(case.prepare(path, *inputs)) for path in right}
    best = min(times, key=times.get)
    found = ", ".join([*(f"{path} {ms:.3f} ms" for path, ms in times.items()), *told])
    return Step(f"{name}: {found}: {best}"), best


def _wrong(check: Held) -> str:
    if check.failed:
        return check.failed
    return f"its error is {check.error:.1e} where {check.allowed:.1e} is allowed (lrp-fast doctor tells more)"
