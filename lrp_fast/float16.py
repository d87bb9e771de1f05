"""What float16 cannot hold, raised for a while: nothing below 6e-8 is there, and few digits below 6e-5.

What enters a backward pass in float16 is multiplied by powers of two, which cost no digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 64.0  # of a relevance gradient: a layer's branches have room for 1000 times that


def lift(gs: list[Tensor | None]) -> Tensor:
    """Multiply each prompt's gradients, (N, D) and others, by the power of two that brings their largest entry to
    `_LARGEST` or, at least, half of it; return these, (B, 1, 1)."""
    there = [g for g in gs if g is not None]
    largest = torch.stack([g.abs().flatten(1).amax(1) for g in there]).amax(0).clamp(min=2.0**-100)
    factor = _LARGEST * largest.frexp().mantissa / largest
    for g in there:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
    return factor.view(-1, 1, 1)


def lower(gs: list[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """What came of what `lift` has multiplied, in float32."""
    wide = [None if g is None else g.float() for g in gs]
    return [None if g is None else g.div_(factor.view(-1, *[1] * (g.ndim - 1))) for g in wide]
