"""Normalised AOPC (Edin et al., arXiv 2408.08137): AOPC between the worst and the best that any order of units reaches.

p is the target's probability, and an order takes the U units away one by one:

    AOPC(order) = 1/U sum_{j=1..U} [p(whole) - p(without the first j)]
    NAOPC = (AOPC - lowest) / (highest - lowest), over all orders

``comprehensiveness`` is that of the order from the highest score to the lowest (1 is best), ``sufficiency`` that of
the reverse (0 is best). For up to 8 units the limits are exact, over all subsets; above, as in the paper's NAOPC-beam,
by beam search (width 5, one for the highest and one for the lowest), so that a ranking may come out slightly beyond
them. Where highest and lowest are equal, nothing can be told: NaN. Limits are searched once a case, for all methods.

Replacement: "zero", where the paper has the mask token of a masked language model. A prompt of more than 32 units is
refused: the search runs some 5 U² prompts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..curves import removed
from ..scene import Scene

BETTER = {"comprehensiveness": "higher", "sufficiency": "lower"}

_EXACT, _MOST = 8, 32  # units


def naopc(scores: Tensor, scene: Scene, replacement: str = "zero", beam: int = 5) -> dict:
    if scene.units > _MOST:
        raise ValueError(
            f"the prompt has {scene.units} units, and the best of their orders is searched among {_MOST} at most: give "
            "larger units, or leave naopc out"
        )
    key = ("naopc", scene.replacement or replacement, beam)
    if key not in scene.kept:
        sides = (True, False)
        scene.kept[key] = [_limit(scene, replacement, highest, beam) for highest in sides]
    highest, lowest = scene.kept[key]
    order = scene.ranked(scores)
    found = {}
    for name, one in (("comprehensiveness", order), ("sufficiency", order.flip(0))):
        value = float(_drops(scene, removed(one, scene.units)[1:], replacement).mean())
        found[f"aopc_{name}"] = value
        found[name] = (value - lowest) / (highest - lowest) if highest > lowest else math.nan
    return found | {"highest": highest, "lowest": lowest}


def _drops(scene: Scene, keep: Tensor, replacement: str) -> Tensor:
    return scene.whole().probability - scene.read(keep, replacement).probability


def _limit(scene: Scene, replacement: str, highest: bool, beam: int) -> float:
    """The greatest or the least AOPC of all orders, or of those that a beam search sees.

    A subset's best sum of drops is its own drop and the best of those of its subsets with one unit fewer; the beam
    keeps the best subsets of each size.
    """
    sign, width = 1 if highest else -1, math.inf if scene.units <= _EXACT else beam
    sums: dict[frozenset, float] = {frozenset(): 0.0}
    for _ in range(scene.units):
        grown: dict[frozenset, float] = {}
        for gone, total in sums.items():
            for unit in range(scene.units):
                if unit not in gone:
                    more = gone | {unit}
                    grown[more] = max(grown.get(more, -math.inf), total)
        keep = torch.ones(len(grown), scene.units, dtype=torch.bool)
        for i, gone in enumerate(grown):
            keep[i, list(gone)] = False
        drops = (sign * _drops(scene, keep, replacement)).tolist()
        reached = [(total + drop, gone) for (gone, total), drop in zip(grown.items(), drops, strict=True)]
        reached.sort(key=lambda one: -one[0])
        sums = {gone: total for total, gone in reached[: len(reached) if width == math.inf else width]}
    return sign * max(sums.values()) / scene.units
