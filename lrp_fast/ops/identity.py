"""What a product or a pointwise function does to relevance, where its value is computed elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from .once import once


def identity(z: Tensor, y: Tensor, ratio: Tensor) -> Tensor:
    """``y = f(z)``, through which relevance passes unchanged: the relevance gradient of ``z`` is that of ``y`` times
    ``ratio``.

    Args:
        z, y: one shape. Nothing goes back through ``y``.
        ratio: f(z)/z with its limit at 0, of any float dtype.
    """
    return _Identity.apply(z, y, ratio)


def product(gate: Tensor, up: Tensor, *, rule: str | Rules = "attnlrp") -> Tensor:
    """``gate * up``, both explained: each gets half of the relevance (attnlrp), or ``up`` gets all (cp).

    Args:
        gate, up: shapes that broadcast.
    """
    return _Product.apply(gate, up, as_rules(rule))


def share(x: Tensor, part: float) -> Tensor:
    """``x``, as a factor of a product that gets ``part`` of the product's relevance; 0: it is a constant there."""
    if part == 0:
        return x.detach()
    return x if part == 1 else _Share.apply(x, part)


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, part):
        ctx.part = part
        return x.view_as(x)

    @staticmethod
    @once
    def backward(ctx, g):
        return g * ctx.part, None


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


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, rules):
        ctx.shares, ctx.shape, ctx.dtypes = rules.treatment, up.shape, (gate.dtype, up.dtype)
        ctx.save_for_backward(gate, *([up] if ctx.shares.gate else []))
        return gate * up

    @staticmethod
    @once
    def backward(ctx, g):
        gate, *rest = ctx.saved_tensors
        g_up = (g * gate * ctx.shares.up).sum_to_size(ctx.shape).to(ctx.dtypes[1])
        g_gate = (g * rest[0] * ctx.shares.gate).sum_to_size(gate.shape).to(ctx.dtypes[0]) if rest else None
        return g_gate, g_up, None
