"""RISE and MAS: areas below deletion and insertion curves, and how the scores' magnitudes align with them.

After RISE (Petsiuk et al., arXiv 1806.07421) and Magnitude Aligned Scoring (Walker et al., IJCAI 2024), in the form
that the code of FlashTrace (arXiv 2602.01914) gives them for language models, of the log-probability of what is
answered, here of the one target token. S = min(20, U) steps of as equal numbers of units as can be, from the highest
score on:

- the response y_j after j steps is the target's log-probability, put between its two ends: deletion has (y_j - y_S) /
  |y_0 - y_S|, insertion (y_j - y_0) / |y_S - y_0|, each clipped to 0 ... 1, and made monotonic (the lowest so far; the
  highest so far);
- the density d_j is the share of the scores that is still there: 1 minus that of the units taken away, or that of
  those put in. Scores below 0 count as 0 (FlashTrace adds them up as they are; it is the same for scores that are not
  negative); if none is above 0, the density goes in equal steps;
- ``deletion``: the area below y, RISE, lower is better; ``insertion``: higher is better;
- ``mas_deletion``: that below y + |y - d|, ``mas_insertion``: below y - |y - d|, both clipped to 0 ... 1 and then
  stretched to it; in equal steps where all its values are equal.

Replacement: "pad". FlashTrace has deletion alone.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..curves import area, inserted, removed, sizes
from ..scene import Scene

BETTER = {"mas_deletion": "lower", "mas_insertion": "higher", "deletion": "lower", "insertion": "higher"}


def mas(scores: Tensor, scene: Scene, replacement: str = "pad", steps: int = 20) -> dict:
    order = scene.ranked(scores)
    there = _density(scene.of_units(scores).clamp(min=0)[order].numpy(), sizes(scene.units, steps))
    found = {}
    for name, keep, density in (("deletion", removed, 1 - there), ("insertion", inserted, there)):
        answered = scene.read(keep(order, steps), replacement).logprob.numpy()
        response = _response(answered, name == "deletion")
        sign = 1 if name == "deletion" else -1
        aligned = _stretched((response + sign * np.abs(response - density)).clip(0, 1), name == "deletion")
        found |= {name: area(response), f"mas_{name}": area(aligned), f"{name}_curve": response.tolist()}
        found[f"{name}_density"] = density.tolist()
    return found


def _density(scores: np.ndarray, counts: list[int]) -> np.ndarray:
    """(S + 1,): of the sum of ``scores``, in the order that their units go, the share of those that went."""
    if scores.sum() <= 0:
        return np.linspace(0, 1, len(counts) + 1)
    return np.concatenate([[0.0], scores.cumsum()[np.array(counts) - 1] / scores.sum()])


def _response(answered: np.ndarray, deleting: bool) -> np.ndarray:
    """(S + 1,) between 0 and 1, falling or rising."""
    low, high = (answered[-1], answered[0]) if deleting else (answered[0], answered[-1])
    if high == low:
        return np.linspace(1, 0, len(answered)) if deleting else np.linspace(0, 1, len(answered))
    scaled = ((answered - low) / abs(high - low)).clip(0, 1)
    return np.minimum.accumulate(scaled) if deleting else np.maximum.accumulate(scaled)


def _stretched(curve: np.ndarray, deleting: bool) -> np.ndarray:
    if curve.max() == curve.min():
        return np.linspace(1, 0, len(curve)) if deleting else np.linspace(0, 1, len(curve))
    return (curve - curve.min()) / (curve.max() - curve.min())
