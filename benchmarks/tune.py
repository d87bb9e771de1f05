"""The tuner: times neighbours of the entries of kernels/tiles.json on this GPU, and writes the fastest into it.

    python benchmarks/run.py tune [--rows 'dkv*, head_dim 128, *']
    python benchmarks/run.py tune --on 9.0      # no GPU is needed: which neighbours would be timed there

Nothing tunes itself when a kernel is launched: this rewrites the table, for the GPU's exact compute capability alone,
and whoever likes the difference commits it. From the entry in force it goes on to the fastest neighbour (one field a
step down or up) until none is faster. A neighbour is timed if it compiles within the device's shared memory, spills
little or no more than the entry in force, and gives that one's results up to rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from fnmatch import filter as matching
from pathlib import Path

import torch
import triton
from torch import Tensor

from lrp_fast.kernels import attention, common, edges, linear, tiles
from lrp_fast.kernels.resources import SHARED, TENSOR_MEMORY, Resources, resources

TOKENS = 4096
FEWER = 0.98  # of the time, at most: a smaller gain is noise
SPILLED = 128  # bytes of stack a thread that may still pay: for larger tiles, or matrix instructions that want them
DTYPES = {2: torch.bfloat16, 4: torch.float32}

FILE = Path(__file__).resolve().parents[1] / "kernels" / "tiles.json"  # the checkout's, whatever is installed

Run = Callable[[tiles.Table], tuple[Tensor | None, ...]]


def main(pattern: str, dry: tuple[int, int] | None) -> None:
    """Tunes the rows that match ``pattern`` on this GPU; or lists, for the capability ``dry``, what it would time."""
    if not dry and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device to time anything on: --on 9.0 lists what would be timed on one")
    on = dry or torch.cuda.get_device_capability()
    if on[0] * 10 + on[1] not in SHARED:
        raise SystemExit(f"no limit of shared memory is known for sm_{on[0]}{on[1]}: add it to kernels/resources.py")
    table = tiles.TABLE
    rows = matching(table, pattern)
    if not rows:
        raise SystemExit(f"no row of {FILE.name} matches {pattern!r}")
    for row in rows:
        entry = tiles.find(table, row, on)
        if dry:
            most = compiled(row, table, on)
            timed = [
                other
                for other in neighbours(entry)
                if fits(compiled(row, tiles.replaced(table, row, on, other), on), most, on)
            ]
            print(f"{row}: {entry}, to be timed beside {timed}", flush=True)
            continue
        best, before, after = tuned(row, table, on, timer(row, table))
        print(f"{row}: {entry} {before:.3f} ms, {best} {after:.3f} ms", flush=True)
        if best != entry:  # written at once, so that an interrupted run keeps what it has found
            table = tiles.replaced(table, row, on, best)
            FILE.write_text(tiles.written(table))


def tuned(row: str, table: tiles.Table, on: tuple[int, int], time: Callable) -> tuple[list[int], float, float]:
    """The entry that hill climbing ends at, and the milliseconds of the one in force and of this one.

    Args:
        time: milliseconds of a table's entry of ``row``, or None where its results are wrong.
    """
    best = tiles.find(table, row, on)
    before = after = time(table)
    most, seen = compiled(row, table, on), [best]
    while True:
        found = []
        for entry in neighbours(best):
            if entry in seen:
                continue
            seen.append(entry)
            trial = tiles.replaced(table, row, on, entry)
            if fits(compiled(row, trial, on), most, on) and (milliseconds := time(trial)) is not None:
                found.append((milliseconds, entry))
        if not found or min(found)[0] > FEWER * after:
            return best, before, after
        after, best = min(found)


def neighbours(entry: list[int]) -> Iterator[list[int]]:
    """The entries a step away: a block or the warps halved or doubled, or a stage less or more."""
    *blocks, _, _ = entry
    ranges = [(16, 256)] * len(blocks) + [(4, 16), (1, 5)]
    for i, (least, most) in enumerate(ranges):
        steps = (entry[i] - 1, entry[i] + 1) if i == len(ranges) - 1 else (entry[i] // 2, entry[i] * 2)
        yield from (entry[:i] + [value] + entry[i + 1 :] for value in steps if least <= value <= most)


def compiled(row: str, table: tiles.Table, on: tuple[int, int]) -> Resources | None:
    """What the launch that ``row`` is for takes; None where the compiler refuses it."""
    kernel, prepare = work(row)
    cases = common.record({row: lambda: prepare("meta")(table)}, on)
    (case,) = (case for case in cases if case[1] is kernel)
    try:
        return resources(case, on[0] * 10 + on[1])
    except (triton.CompilationError, triton.runtime.errors.PTXASError, RuntimeError):
        return None


def fits(found: Resources | None, most: Resources, on: tuple[int, int]) -> bool:
    if found is None or found.shared > SHARED[on[0] * 10 + on[1]] or found.tensor_memory > TENSOR_MEMORY:
        return False
    return found.stack <= max(most.stack, SPILLED)


def timer(row: str, table: tiles.Table) -> Callable[[tiles.Table], float | None]:
    """What `tuned` wants, on this GPU; right is what ``table`` gives."""
    run = work(row)[1]("cuda")
    expected = run(table)

    def time(trial):
        if not same(run(trial), expected):
            return None
        return triton.testing.do_bench(lambda: run(trial), return_mode="median")

    return time


def same(found: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> bool:
    """Whether two ways to sum the same terms differ by no more than that: every operand is rounded to its dtype once,
    on both sides, and a sum of TOKENS terms, which both take in float32, is off by about the root of their number."""
    for a, b in zip(found, expected, strict=True):
        if a is not None:
            bound = 2 * torch.finfo(a.dtype).eps + math.sqrt(TOKENS) * torch.finfo(torch.float32).eps
            if not (a.double() - b.double()).norm() <= bound * b.double().norm():
                return False
    return True


def work(row: str, seldom: bool = False) -> tuple[object, Callable[[str], Run]]:
    """The kernel that ``row`` is for, and what prepares, on a device, a call that launches it as it is mostly used; or,
    where ``seldom``, as the row serves too: dV alone, as cp wants it, and whole tiles of edges.
    """
    if match := re.fullmatch(r"(forward|dkv|dq)( gamma| capped)?, head_dim (\d+), (\d) bytes", row):
        step, form, head_dim, itemsize = match.groups()
        kernel = {"forward": attention.forward_kernel, "dkv": attention.dkv_kernel, "dq": attention.dq_kernel}[step]
        return kernel, lambda device: _attention(step, form, int(head_dim), DTYPES[int(itemsize)], device, cp=seldom)
    if match := re.fullmatch(r"edges( parts| gamma)?, head_dim (\d+), (\d) bytes", row):
        form, head_dim, itemsize = match.groups()
        kernel = edges.tile_kernel if seldom else edges.strongest_kernel
        return kernel, lambda device: _edges(form, int(head_dim), DTYPES[int(itemsize)], device, whole=seldom)
    if match := re.fullmatch(r"gamma_(forward|backward), (\d) bytes(, few rows)?", row):
        step, itemsize, few = match.groups()
        kernel = {"forward": linear.gamma_forward_kernel, "backward": linear.gamma_backward_kernel}[step]
        return kernel, lambda device: _linear(step, 16 if few else TOKENS, DTYPES[int(itemsize)], device)
    raise ValueError(f"the tuner does not know what the row {row!r} is for")


def _heads(head_dim, dtype, device) -> list[Tensor]:
    """query, key, value and the output's gradient."""
    generator = _generator(device)
    return [
        torch.randn(1, TOKENS, heads, head_dim, dtype=dtype, device=device, generator=generator).transpose(1, 2)
        for heads in (16, 4, 4, 16)
    ]


def _attention(step, form, head_dim, dtype, device, cp) -> Run:
    query, key, value, g = _heads(head_dim, dtype, device)
    gamma = form == " gamma"
    flags = {"scale": head_dim**-0.5, "causal": True, "window": None, "softcap": 30.0 if form == " capped" else None}
    if step == "forward":
        return lambda table: attention.forward(query, key, value, **flags, absolute=gamma, table=table)
    kept = attention.forward(query, key, value, **flags, absolute=gamma)
    shares = {"value_share": 1.0, "score_share": 0.0} if cp else {"value_share": 0.5, "score_share": 0.25}
    rule = {**shares, "ratio": True, "gamma": 0.25 * gamma}
    return lambda table: attention.backward(g, query, key, value, *kept, **flags, **rule, table=table)


def _edges(form, head_dim, dtype, device, whole) -> Run:
    query, key, value, g = _heads(head_dim, dtype, device)
    gamma = form == " gamma"
    flags = {"scale": head_dim**-0.5, "causal": True, "window": None, "softcap": None}
    kept = attention.forward(query, key, value, **flags, absolute=gamma)
    rule = {"value_share": 0.5, "score_share": 0.25, "ratio": True, "gamma": 0.25 * gamma}
    parts = {"key_part": key, "value_part": value} if form == " parts" else {"key_part": None, "value_part": None}
    given = edges.prepare(g, query, key, value, *kept, **parts, **flags, **rule)
    rows = torch.arange(TOKENS, device=device)
    if whole:
        found = torch.empty(TOKENS**2, device=device)
        return lambda table: (edges.tile(given, rows, slice(0, TOKENS), found, table),)

    def run(table):
        _, weights, dropped = edges.strongest(given, rows, 16, table)
        return weights.abs().sort().values, dropped  # whichever of two nearly equal ones was kept

    return run


def _linear(step, rows, dtype, device) -> Run:
    generator = _generator(device)
    x, weight, g = (
        torch.randn(*shape, dtype=dtype, device=device, generator=generator)
        for shape in ((rows, TOKENS), (14336, TOKENS), (rows, 14336))
    )
    if step == "forward":
        return lambda table: linear.gamma_forward(x, weight, None, 0.0, 0.25, table=table)
    _, t = linear.gamma_forward(x, weight, None, 0.0, 0.25)
    return lambda table: (linear.gamma_backward(g, x, t, weight, 0.25, table=table),)


def _generator(device):
    return None if device == "meta" else torch.Generator(device).manual_seed(0)
