"""Rotary positions in fewer passes over memory than their formula has operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .once import once


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x * cos + rotate_half(x) * sin`` (Su et al., arXiv 2104.09864), in the same bits as transformers computes it.

    It is linear in ``x``: plain gradients are relevance gradients under every rule, and it is differentiable forward
    too.

    Args:
        x: (..., D), D even; the coordinates that turn together are half of it apart.
        cos, sin: (..., D), which broadcast with ``x`` to x's shape. They get no gradient.
    """
    return _Rotary.apply(x, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].sub_(x[..., half:] * sin[..., :half])
    out[..., half:].add_(x[..., :half] * sin[..., half:])
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.dtype = x.dtype
        ctx.save_for_backward(cos, sin)
        ctx.save_for_forward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        half = g.shape[-1] // 2
        g_in, crossed = g * cos, g * sin
        g_in[..., :half].add_(crossed[..., half:])
        g_in[..., half:].sub_(crossed[..., :half])
        return g_in.to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return _rotated(tangent, *ctx.saved_tensors)
