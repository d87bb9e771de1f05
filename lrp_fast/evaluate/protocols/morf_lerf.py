"""Most and least relevant first, and AOPC comprehensiveness and sufficiency.

**MoRF and LeRF** (Samek et al., arXiv 1509.06321; for language models AttnLRP, arXiv 2402.05602): the units go from
the highest score to the lowest (MoRF), or from the lowest to the highest (LeRF), in S = min(20, U) steps of as equal
numbers as can be. ``morf`` and ``lerf`` are the areas below the curves of the preference (trapezoid rule, 0 to 1; each
step counts 1/S, though the first ones may take a unit more: ``gone`` says what share is gone after each), and ``area``
is lerf - morf, 0 for a random ranking on average.

**Comprehensiveness and sufficiency** (ERASER, DeYoung et al., arXiv 1911.03429), p the target's probability: the mean
of p(whole) - p(without the best q) and of p(whole) - p(of the best q alone) over q = 1, 5, 10, 20 and 50 % of the
units, rounded up.

Replacement: "zero". ERASER leaves tokens out, which ``replacement="left out"`` does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..curves import area, removed
from ..scene import Scene

BETTER = {"area": "higher", "morf": "lower", "lerf": "higher", "comprehensiveness": "higher", "sufficiency": "lower"}

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def morf_lerf(scores: Tensor, scene: Scene, replacement: str = "zero", steps: int = 20) -> dict:
    order = scene.ranked(scores)
    best = torch.ones(2 * len(SHARES), scene.units, dtype=torch.bool)
    for i, share in enumerate(SHARES):
        top = order[: math.ceil(share * scene.units - 1e-9)]
        best[i, top] = False
        best[i + len(SHARES)] = ~best[i]
    curves = removed(order, steps), removed(order.flip(0), steps)
    found = scene.read(torch.cat([*curves, best]), replacement)
    count = len(curves[0])
    morf, lerf = found.preference[:count], found.preference[count : 2 * count]
    drops = found.probability[0] - found.probability[2 * count :]
    return {
        "area": area(lerf) - area(morf),
        "morf": area(morf),
        "lerf": area(lerf),
        "comprehensiveness": float(drops[: len(SHARES)].mean()),
        "sufficiency": float(drops[len(SHARES) :].mean()),
        "gone": [float(one) for one in (~curves[0]).double().mean(1)],
        "morf_curve": morf.tolist(),
        "lerf_curve": lerf.tolist(),
    }
