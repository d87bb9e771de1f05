"""Curves over what share of the units is gone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def removed(order: Tensor, steps: int) -> Tensor:
    """(S + 1, U) bool: what is kept when the units go in this order, in S = min(``steps``, U) groups as equal as can
    be, the larger ones first; row 0 keeps all, row S none."""
    count = len(order)
    keep = torch.ones(min(steps, count) + 1, count, dtype=torch.bool)
    for step, size in enumerate(sizes(count, steps), 1):
        keep[step, order[:size]] = False
    return keep


def inserted(order: Tensor, steps: int) -> Tensor:
    """(S + 1, U) bool: the other way round; row 0 keeps none, row S all."""
    return ~removed(order, steps)


def sizes(count: int, steps: int) -> list[int]:
    """How many units are gone after each of min(``steps``, ``count``) steps."""
    steps = min(steps, count)
    base, more = divmod(count, steps)
    return np.cumsum([base + (step < more) for step in range(steps)]).tolist()


def area(values, shares=None) -> float:
    """Below a curve, by the trapezoid rule; over equal steps of 0 to 1 where no ``shares`` are given."""
    values = np.asarray(values, np.float64)
    shares = np.linspace(0, 1, len(values)) if shares is None else np.asarray(shares, np.float64)
    return float(np.trapezoid(values, shares) if hasattr(np, "trapezoid") else np.trapz(values, shares))
