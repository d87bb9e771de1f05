"""Rotary positions (Su et al., arXiv 2104.09864), in the layout of transformers: halves that turn together."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(..., D): coordinates d and d + D/2 are turned by one angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def rotary_backward(g: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose: linear in ``x``, so that every rule passes by it."""
    first, second = (g * sin).chunk(2, -1)
    return g * cos + torch.cat((second, -first), -1)
