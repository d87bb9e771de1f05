"""The issue model: one H100 multiprocessor in the steady state of a kernel's main loop.

A multiprocessor has four schedulers with pipes of their own. The four warps of a warpgroup run one on each, all alike,
so that one scheduler with one warp of every warpgroup stands for all. In a cycle a scheduler issues one instruction of
one warp, each warp's in the program's order, once

- the stall that the compiler gave the warp's last instruction is over;
- the scoreboards that the instruction waits for are released;
- the pipe that it goes down is free;
- the copies, the products or the other warps that it waits for are there.

Products run one after another on the tensor cores, and copies one after another out of the L2.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from .h100 import CONSTANTS, Step, step
from .sass import Instruction


@dataclass
class Warp:
    program: int
    at: int = 0  # which step comes next
    ready: float = 0  # when the stall or the barrier is over,
    held_by: str = "fixed latency"  # and which of them it is
    last: float = 0  # when it issued last
    at_barrier: bool = False
    scoreboards: list[float] = field(default_factory=lambda: [0] * 6)  # when each is released
    copied: float = 0  # when the last copy is there
    copy_groups: list[float] = field(default_factory=list)  # when all of each group are
    product_groups: list[float] = field(default_factory=list)
    queue: float = 0  # when it may issue another product
    ends: list[float] = field(default_factory=list)  # when its iterations were over


@dataclass
class Units:
    """When what the warps share is free again."""

    pipes: defaultdict = field(default_factory=lambda: defaultdict(int))
    tensor: float = 0
    l2: float = 0


class Played(NamedTuple):
    cycles: float  # an iteration of one program
    idle: dict[str, float]  # of these, by cause, most first, those without a useful multiplication on the tensor cores


def play(body: list[Instruction], warps: int, programs: int, iterations: int = 14, apart: float = 0) -> Played:
    """The loop ``body`` in the second half of ``iterations``, with ``programs`` of ``warps`` warps each at once, which
    begin ``apart`` cycles one after the other.

    The tensor cores idle while an instruction is issued ("issue"), or while none can be. Then the warp that will be the
    first to issue again has the cause: "fixed latency" of its last instruction, a "scoreboard", a "pipe", a "barrier",
    "cp.async" or "wgmma" whose results it needs, or the "wgmma queue". They are busy, but do less than they can, while
    a narrow product reads its "wgmma operands".
    """
    steps = [step(instruction) for instruction in body]
    units = Units()
    running = [Warp(program, ready=program * apart) for program in range(programs) for _ in range(max(1, warps // 4))]
    first, latest = running[0], None
    idle: Counter[str] = Counter()
    warm, now = iterations // 2, 0
    while len(first.ends) < iterations:
        when, cause, warp = _next(running, steps, units, now, latest)
        one = steps[warp.at]
        counts = len(first.ends) >= warm
        idle[cause] += counts * _unused(units.tensor, now, when)
        _issue(warp, one, units, when, running)
        idle["issue"] += counts * _unused(units.tensor, when, when + 1)
        if one.does == "product":
            idle["wgmma operands"] += counts * (one.amount - one.useful)
        warp.at += 1
        if warp.at == len(steps):
            warp.at = 0
            warp.ends.append(when)
        now, latest = when + 1, warp
    played = (iterations - warm) * programs
    causes = {cause: cycles / played for cause, cycles in idle.most_common() if cycles}
    return Played((first.ends[-1] - first.ends[warm - 1]) / played, causes)


def _unused(busy_until, start, end):
    return max(0, end - max(start, busy_until))


def _next(running, steps, units, now, latest):
    """When the next instruction is issued, what kept its warp until then, and its warp: of several that may issue at
    once another than ``latest``, and of these the one that has waited longest (assumed)."""
    best = None
    for warp in running:
        if not warp.at_barrier:
            when, cause = _earliest(warp, steps[warp.at], units)
            key = (max(when, now), warp is latest, warp.last)
            if best is None or key < best[0]:
                best = key, cause, warp
    (when, _, _), cause, warp = best
    return when, cause, warp


def _earliest(warp: Warp, one: Step, units: Units) -> tuple[float, str]:
    """When ``warp`` may issue, and what it waits for until then."""
    awaited = [(warp.ready, warp.held_by)]
    awaited += [(warp.scoreboards[board], "scoreboard") for board in one.waits]
    if one.does == "await copies":
        awaited.append((_arrived(warp.copy_groups, one.amount), "cp.async"))
    if one.does == "await products":
        awaited.append((_arrived(warp.product_groups, one.amount), "wgmma"))
    if one.does == "product":
        awaited.append((warp.queue, "wgmma queue"))
    if one.unit.pipe:
        awaited.append((units.pipes[one.unit.pipe], f"pipe {one.unit.pipe}"))
    return max(awaited, key=itemgetter(0))


def _arrived(groups, left):
    """When no more than ``left`` of ``groups`` are outstanding."""
    return max(groups[: max(0, len(groups) - left)], default=0)


def _issue(warp: Warp, one: Step, units: Units, now: float, running: list[Warp]) -> None:
    warp.last = now
    warp.ready, warp.held_by = now + one.stall, "fixed latency"
    if one.unit.pipe:
        units.pipes[one.unit.pipe] = now + one.unit.cycles
    if one.written is not None:
        warp.scoreboards[one.written] = max(warp.scoreboards[one.written], now + one.unit.latency)
    if one.read is not None:
        warp.scoreboards[one.read] = max(warp.scoreboards[one.read], now + one.read_after)
    if one.does == "copy":
        units.l2 = max(now, units.l2) + one.amount / CONSTANTS["l2_bytes_per_clock"]
        warp.copied = units.l2 + CONSTANTS["l2_latency"]
    elif one.does == "commit":
        warp.copy_groups.append(warp.copied)
    elif one.does == "await copies":
        del warp.copy_groups[: max(0, len(warp.copy_groups) - one.amount)]
    elif one.does == "product":
        units.tensor = max(now, units.tensor) + one.amount
        warp.queue = units.tensor - CONSTANTS["wgmma_queued"] * one.amount
        if one.commits:
            warp.product_groups.append(units.tensor + CONSTANTS["wgmma_tail"])
    elif one.does == "await products":
        del warp.product_groups[: max(0, len(warp.product_groups) - one.amount)]
    elif one.does == "barrier":
        warp.at_barrier = True
        mates = [other for other in running if other.program == warp.program]
        if all(mate.at_barrier for mate in mates):
            for mate in mates:
                mate.at_barrier = False
                mate.ready, mate.held_by = now + CONSTANTS["barrier"], "barrier"
