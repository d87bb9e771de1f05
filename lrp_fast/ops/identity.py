"""What a product or a pointwise function does to relevance, where its value is computed elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from .once import once


def identity(z: Tensor, y: Tensor, ratio: Tensor) -> Tensor:
    """``y = f(z)``, through which relevance passes unchanged: the relevance gradient of ``z`` is that of ``y`` times
    ``ratio``.

    Args:
        z, y: one shape. Nothing goes back through ``y``.
        ratio: f(z)/z with its limit at 0, of any float dtype.
    """
    return _Identity.apply(z, y, ratio)


def share(x: Tensor, part: float) -> Tensor:
    """``x``, as a factor of a product that gets ``part`` of the product's relevance; 0: it is a constant there."""
    if part == 0:
        return x.detach()
    return x if part == 1 else _Share.apply(x, part)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, y, ratio):
        ctx.dtype = z.dtype
        ctx.save_for_backward(ratio)
        return y.view_as(y)

    @staticmethod
    @once
    def backward(ctx, g):
        (ratio,) = ctx.saved_tensors
        return (g * ratio).to(ctx.dtype), None, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, part):
        ctx.part = part
        return x.view_as(x)

    @staticmethod
    @once
    def backward(ctx, g):
        return g * ctx.part, None
