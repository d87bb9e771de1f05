"""From the entry of a row that is in force to the fastest that can be reached step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..ops.backend import kernels
from .bench import Bench
from .launches import work

FEWER = 0.98  # of the time, at most: a smaller gain is noise
SPILLED = 128  # bytes of stack a thread that may still pay: for larger tiles, or matrix instructions that want them


Time = Callable[[dict], float | None]  # milliseconds of a table's entry; None where its results are wrong


def climbed(row: str, table: dict, bench: Bench, time: Time) -> tuple[list[int], float, float] | None:
    """The entry that hill climbing ends at, and the milliseconds of the one in force and of this one.

    It goes on to the fastest neighbour, until none is faster or the time is over. A neighbour is timed if it compiles
    within the device's shared memory, and spills little or no more than the entry in force.
    None where even the entry in force gives wrong results.
    """
    tiles, on = kernels("tiles"), bench.on.capability
    best = tiles.find(table, row, on)
    before = after = time(table)
    if before is None:
        return None
    most, seen = bench.compiled(row, table, on), [best]
    while bench.left() > 0:
        others = [entry for entry in neighbours(best) if entry not in seen]
        trials = {tuple(entry): tiles.replaced(table, row, on, entry) for entry in others}
        seen += others
        found = []
        for entry, resources in bench.compiling(row, trials):
            if bench.left() <= 0:
                break
            if fits(resources, most, bench.on.shared) and (milliseconds := time(trials[entry])) is not None:
                found.append((milliseconds, list(entry)))
        if not found or min(found)[0] > FEWER * after:
            break
        after, best = min(found)
    return best, before, after


def neighbours(entry: list[int]) -> Iterator[list[int]]:
    """The entries a step away: a block or the warps halved or doubled, or a stage less or more."""
    *blocks, _, _ = entry
    ranges = [(16, 256)] * len(blocks) + [(4, 16), (1, 5)]
    for i, (least, most) in enumerate(ranges):
        steps = (entry[i] - 1, entry[i] + 1) if i == len(ranges) - 1 else (entry[i] // 2, entry[i] * 2)
        yield from (entry[:i] + [value] + entry[i + 1 :] for value in steps if least <= value <= most)


def fits(found, most, shared: int) -> bool:
    """Whether what a kernel takes (`kernels.resources.Resources`, or None) is there; ``most`` is that of the entry in
    force."""
    if found is None or found.shared > shared or found.tensor_memory > kernels("resources").TENSOR_MEMORY:
        return False
    return most is None or found.stack <= max(most.stack, SPILLED)


def timed(row: str, table: dict, bench: Bench) -> Time:
    """What `climbed` wants; right is what ``table`` gives."""
    run = work(row, tokens=bench.tokens)[1](str(bench.device))
    expected = run(table)

    def time(trial):
        try:
            if not same(run(trial), expected, bench.tokens):
                return None
        except bench.refusals:  # the compiler's account and the driver's differ
            return None
        return bench.milliseconds(lambda: run(trial))

    return time


def same(found: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...], terms: int) -> bool:
    """Whether two ways to sum the same terms differ by no more than that: every operand is rounded to its dtype once,
    on both sides, and a sum of so many terms, which both take in float32, is off by about the root of their number."""
    for a, b in zip(found, expected, strict=True):
        if a is not None:
            bound = 2 * torch.finfo(a.dtype).eps + math.sqrt(terms) * torch.finfo(torch.float32).eps
            if not (a.double() - b.double()).norm() <= bound * b.double().norm():
                return False
    return True
