"""Soft comprehensiveness and sufficiency at a fixed share that is kept (π-Soft-NC and π-Soft-NS, arXiv 2601.03089).

Soft perturbation (Zhao and Aletras, arXiv 2305.10496) keeps every entry of a token's embedding with a probability,
else sets it to zero: for sufficiency (NS) the more important a token is, the more of it is kept, for comprehensiveness
(NC) the less. The π forms compare methods at one expected share that is kept, so that none gains by scores that are
large on average. With H the Hellinger distance of the next token's distribution from that of the whole prompt, H_0
that of a prompt with all units zero:

    NC = H(perturbed) / H_0        NS = max(0, H_0 - H(perturbed)) / H_0

(the forms for generation of ReAGent, arXiv 2402.00794), both higher for the better, as means over 4 draws at each of π
= 0.25, 0.5, 0.75, and then over these. With U units, importance is their scores' ranks over U - 1 (0 to 1; equal ones
share their mean rank), and the probabilities are importance (NS) or 1 - importance (NC), times a factor, cut off at 1,
so that their mean over the units is π. Random numbers are the same for every method.

The paper's text was not at hand beyond its abstract: how it brings scores to probabilities of mean π, its π, and its
normalisation may differ from these. Ranks rather than the scores themselves make the probabilities those of any method
with that ranking; that is this package's choice."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...study.statistics import ranks
from ..scene import Scene

BETTER = {"soft_nc": "higher", "soft_ns": "higher"}

SHARES = (0.25, 0.5, 0.75)


def soft(scores: Tensor, scene: Scene, draws: int = 4) -> dict:
    """Raises ValueError for a prompt whose units make no difference to the distribution."""
    nothing = float(scene.read(torch.zeros(1, scene.units, dtype=torch.bool), "zero").distance)
    if nothing == 0:
        raise ValueError("a prompt of zeros says the same as the whole one: there is nothing to measure by")
    importance = (ranks(scene.of_units(scores).numpy()) - 1) / max(1, scene.units - 1)
    seeds = scene.drawn("soft").integers(0, 2**62, draws).tolist()
    found = {}
    for name, kept in (("soft_nc", 1 - importance), ("soft_ns", importance)):
        rows = np.repeat([scaled(kept, share) for share in SHARES], draws, 0)
        far = scene.read_soft(torch.from_numpy(rows), seeds * len(SHARES)).distance / nothing
        found[name] = float((far if name == "soft_nc" else (1 - far).clamp(min=0)).mean())
    return found


def scaled(kept: np.ndarray, share: float) -> np.ndarray:
    """min(1, c ``kept``) whose mean is ``share``, or the nearest below, where too many are 0."""
    some = np.sort(kept[kept > 0])[::-1]
    if len(some) <= share * len(kept):
        return (kept > 0).astype(np.float64)
    # The largest ``full`` are cut off at 1, and the others make up the rest.
    for full in range(len(some)):
        factor = (share * len(kept) - full) / some[full:].sum()
        if factor * some[full] <= 1:
            return np.minimum(1, factor * kept)
    return np.minimum(1, kept / some[-1])
