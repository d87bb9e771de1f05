"""Recovery of gold spans among the best 10 %, as in FlashTrace (arXiv 2602.01914).

``recovery`` is the share of the units that hold a gold token which are among the best k = 10 % of all U (rounded up,
one at least), ``chance`` k / U, what a random ranking recovers on average. Scores below 0 count as 0; of equal ones
the first is the better. ``rank`` is the best rank of a gold unit, from 1, and ``mass`` the share of all positive
scores that gold units hold. No model is run."""

from __future__ import annotations

import math

from torch import Tensor

from ..scene import Scene

BETTER = {"recovery": "higher", "rank": "lower", "mass": "higher"}


def recovery(scores: Tensor, scene: Scene, share: float = 0.1) -> dict:
    """Raises ValueError for a case without gold spans."""
    if scene.gold is None or not scene.gold.any():
        raise ValueError("the case has no gold spans: give it a field 'gold', spans as segments have them")
    positive = scene.of_units(scores).clamp(min=0)
    order = positive.argsort(descending=True, stable=True)
    best = max(1, math.ceil(share * scene.units - 1e-9))
    hits = scene.gold[order]
    total = float(positive.sum())
    return {
        "recovery": float(hits[:best].sum() / hits.sum()),
        "rank": float(hits.nonzero()[0] + 1),
        "mass": float(positive[scene.gold].sum()) / total if total > 0 else math.nan,
        "chance": best / scene.units,
    }
