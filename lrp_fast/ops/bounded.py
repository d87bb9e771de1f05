"""Which tiles of an attention its backward pass may leave out, given what it is allowed to lose.

The mass of a tile of queries I and keys J of one head is

    m_IJ = sum_{i in I} |u_i| sum_{j in J} P_ij

with u the relevance gradient at the head's output, behind the stabilisers. Over J it sums to that of |u_i| (less what
sinks take), and it bounds what the tile hands back: to the values directly, and to queries and keys by
|dS_ij| <= P_ij |u_i| (|v_j| + |o_i|).
"""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLED = 8  # every so many tiles of queries are looked at before the others

UNITS = 2.0**60  # of which all masses together are: sums of whole numbers come out the same in any order


class Chosen(NamedTuple):
    """The tiles that stay, and the share of all mass that lies on the others."""

    kept: Tensor  # bool, as the masses
    dropped: float


def read_tolerance(tolerance) -> float:
    """``tolerance`` as a float.

    Raises:
        TypeError, ValueError: unless it is a number from 0 up to, but not including, 1.
    """
    if type(tolerance) is not float and (isinstance(tolerance, bool) or not isinstance(tolerance, Real)):
        raise TypeError(f"tolerance must be a number, not {tolerance!r}")
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"tolerance must be at least 0 and below 1, the share of mass that may be lost: {tolerance!r}")
    return float(tolerance)


def worth(scores: bool) -> float:
    """Of the tiles, so many at most may stay where their masses take a product of their own, beside the five, or the
    two where the weights are constants (``scores`` False), that a tile then costs: with more, to find them costs more
    than it saves. By the count of products, with room for what is not counted."""
    return 0.7 if scores else 0.4


def choose(masses: Tensor, tolerance: float) -> Chosen | None:
    """Leave out the tiles of smallest mass, as many as hold no more than ``tolerance`` of the sum; equal ones stay or
    go together.

    Returns:
        None if the sum is not finite: then nothing is known.
    """
    total = masses.sum(dtype=torch.float64)
    if not total.isfinite():
        return None
    if total == 0:
        return Chosen(torch.zeros_like(masses, dtype=torch.bool), 0.0)
    there = masses[masses > 0]
    ascending = there.sort().values
    sums = (ascending.double() / total * UNITS).long().cumsum_(0)
    goes = int((sums <= int(tolerance * UNITS)).sum())
    if goes == len(ascending):  # a sum of roundings may be one
        goes -= 1
    kept = masses >= ascending[goes]
    first = int(torch.searchsorted(ascending, ascending[goes]))
    return Chosen(kept, int(sums[first - 1]) / UNITS if first else 0.0)


def kept_share(masses: Tensor, tolerance: float) -> float:
    """The share of the tiles with any mass that `choose` would keep; 1 where it knows nothing."""
    chosen = choose(masses, tolerance)
    there = int((masses > 0).sum())
    return 1.0 if chosen is None else int(chosen.kept.sum()) / max(there, 1)
