"""Which prompts go through the model in one pass, and that pass.

They are padded on the right, without a mask: positions count from each prompt's own beginning, no token reads a later
one, and what nothing reads carries no relevance back. Where tokens read in both directions, only prompts of one length
share a pass. Products of other shapes round otherwise; that is all that tells
a prompt in company from the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from .attribution import Attribution, finished
from .graph import GraphSpec, transition
from .hf import device_of, padding_shows, prompts_meet
from .memory import Memory, Plan, planned
from .question import Question
from .rules import Rules
from .stream import Passed, Progress, propagate

# What a pass costs besides its tokens, in tokens, and how many of them fill the machine: with more, none is cheaper. On
# CPUs as measured; on CUDA, where launches and Python take longer than a thousand tokens do, reckoned.
_PASS = {"cpu": 32, "cuda": 2048}
_ENOUGH = {"cpu": 4096, "cuda": 8192}
_MOST = 256  # prompts in a pass: so many are looked at together


class Size(NamedTuple):
    """What of a prompt decides which others it shares a pass with."""

    tokens: int
    positions: int


class Pack(NamedTuple):
    """Prompts that share a pass."""

    rows: list[int]  # which they are
    plan: Plan


def packs(
    model, sizes: list[Size], rules: Rules, graph: GraphSpec | None, memory: Memory | None, tolerance: float
) -> list[Pack]:
    """Prompts of these sizes, each in one pack, in the order of the first of each.

    Raises:
        ValueError: if the budget cannot hold one of them alone, with its row.
    """
    plans: dict[tuple, Plan] = {}

    def planned_for(rows: list[int]) -> Plan:
        together = max(sizes[row].tokens for row in rows), sum(sizes[row].positions for row in rows), len(rows)
        if together not in plans:
            length, positions, prompts = together
            given = {"positions": positions, "prompts": prompts, "graph": graph, "tolerance": tolerance}
            plans[together] = planned(model, length, rules, memory, **given)
        return plans[together]

    def fitting(rows: list[int]) -> list[Pack]:
        """``rows`` in one pack, or in parts that let no layer wait further away than the longest alone does."""
        try:
            alone = planned_for(rows[-1:])
        except ValueError as error:
            raise ValueError(f"row {rows[-1]}: {error}") from error
        if len(rows) == 1:
            return [Pack(rows, alone)]
        try:
            if planned_for(rows).tiers == alone.tiers:
                return [Pack(rows, planned_for(rows))]
        except ValueError:
            pass
        half = len(rows) // 2
        return fitting(rows[:half]) + fitting(rows[half:])

    order = sorted(range(len(sizes)), key=lambda row: sizes[row].tokens)
    cuts = [*range(len(sizes) + 1)]
    if not prompts_meet(model):
        kind = device_of(model.get_input_embeddings()).type
        lengths = [sizes[row].tokens for row in order]
        cuts = cheapest(lengths, not padding_shows(model), _PASS[kind], _ENOUGH[kind])
    found = [pack for start, end in pairwise(cuts) for pack in fitting(order[start:end])]
    return sorted(found, key=lambda pack: min(pack.rows))


def cheapest(lengths: list[int], may_pad: bool, each: int, enough: int) -> list[int]:
    """Where to cut prompts of these ``lengths``, ascending, for the least cost in all, padding and passes counted.

    Args:
        may_pad: or else only prompts of one length share a pass.
        each: what a pass costs, in tokens.
        enough: tokens in a pass of more than one prompt.
    """
    least, begin = [0], []
    for end, longest in enumerate(lengths, 1):
        first = end - max(1, min(_MOST, enough // longest))
        starts = [one for one in range(max(0, first), end) if may_pad or lengths[one] == longest]
        costs = [least[start] + each + (end - start) * longest for start in starts]
        least.append(min(costs))
        begin.append(starts[costs.index(least[-1])])
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(begin[cuts[-1] - 1])
    return cuts[::-1]


def explain_together(
    model,
    asked: list[Question],
    graph: GraphSpec | None,
    planned: Plan,
    progress: Progress | None,
    tolerance: float,
) -> list[Attribution | None]:
    """One result a prompt, as `attribution.explain` has them; None for a prompt that something is wrong with.

    One backward pass serves them all, from the sum of their values.
    """
    lengths = [len(one.ids) for one in asked]
    longest = max(lengths)
    # Behind it, a prompt's own last token: another one might overflow where the prompt does not.
    ids = torch.stack([torch.cat([one.ids, one.ids[-1:].expand(longest - len(one.ids))]) for one in asked])
    places = [row * longest + place for row, one in enumerate(asked) for place in one.positions]
    found: list[list] = [[] for _ in asked]  # (value, explained)
    transitions: list[list] = [[] for _ in asked]

    def observe(passed: Passed) -> None:
        row = passed.prompt
        if all(nodes.isfinite().all() for nodes in (passed.relevance_in, passed.relevance_out)) and found[row]:
            transitions[row].append(transition(graph, passed, found[row][0][0]))

    objective = _sum_of(asked, found)
    given = (model, ids.to(device_of(model.get_input_embeddings())), places, objective, asked[0].rules, planned)
    relevance = propagate(*given, progress, observe if graph else None, lengths)
    results: list[Attribution | None] = []
    for one, told, (layers, dropped), edges in zip(asked, found, relevance, transitions, strict=True):
        right = bool(told) and bool(layers.isfinite().all())
        passed = (layers, dropped, tolerance, graph, edges)
        results.append(finished(model, one, *told[0], *passed) if right else None)
    return results


def _sum_of(asked: list[Question], found: list[list]) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """What `lrp_fast.stream` takes; the values, and what they are of, go to ``found``, but for prompts without any."""

    def scalar(logits: torch.Tensor) -> list[torch.Tensor]:
        values = []
        for one, told, own in zip(asked, found, logits.split([len(one.positions) for one in asked]), strict=True):
            try:
                values += one.objective(told)(own)
            except ValueError:
                continue
        return [sum(values) if values else 0 * logits.sum()]

    return scalar
