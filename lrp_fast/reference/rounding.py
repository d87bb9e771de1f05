"""How far rounding alone may take a result from its definition: the one judge of tests, doctor and tuner.

Inputs are rounded to the working dtype first. The truth is the definition of those in float64, the plain form the same
definition in the working dtype; a result is right if it is no further from the truth than the plain form is, but for
what rounding sums of ``terms`` numbers may add. Rounding errors of a sum of n terms grow like sqrt(n) u (Higham and
Mary 2019), u the unit roundoff, relative to the largest result. Both the mean and the worst error are held to this.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Error(NamedTuple):
    """One measure of a tensor's error, and what it may be."""

    measure: str  # "max" or "mean"
    found: float
    allowed: float
    scale: float  # that measure of the truth itself

    @property
    def within(self) -> bool:
        return self.found <= self.allowed  # not so for NaN


def errors(found: Tensor, plain: Tensor, truth: Tensor, terms: float) -> list[Error]:
    """The worst and the mean error of ``found``; all of one shape, ``truth`` in float64."""
    roundoff = math.sqrt(terms) * torch.finfo(found.dtype).eps / 2
    listed = []
    for measure in (torch.max, torch.mean):
        error, own = (measure((one.double() - truth).abs()).item() for one in (found, plain))
        scale = measure(truth.abs()).item()
        listed.append(Error(measure.__name__, error, own + roundoff * scale, scale))
    return listed


def summed(dtype: torch.dtype, terms: float, narrow: float = 4) -> float:
    """How many roundings to ``dtype`` stand for a sum of ``terms`` numbers.

    From 16 bits it is taken in float32, and only a few numbers on the way, ``narrow`` of them, are rounded to 16.
    """
    return narrow if dtype in (torch.float16, torch.bfloat16) else terms


def slope_of_stabilisers(largest: float, epsilon: float, gamma: float) -> float:
    """By how much the factor of the epsilon and gamma rules on P V enlarges what rounding does to its output.

    The factor |o| / ((1 + gamma / 2) |o| + gamma a / 2 + epsilon) with a = P |V| has a slope of up to
    1 / (gamma a / 2 + epsilon): so many of o's roundings, which are relative to a, come to those of u, which is as
    large as a / ((1 + gamma) a + epsilon). Terms count by its square.

    Args:
        largest: of a; with epsilon alone of |o|, a not counting then.
    """
    if not (epsilon or gamma):
        return 1.0
    return ((1 + gamma) * largest + epsilon) / (gamma * largest / 2 + epsilon)
