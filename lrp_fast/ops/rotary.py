"""Rotary positions in fewer passes over memory than their formula has operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import pointwise_native
from .once import once


def rotary(x: Tensor | tuple[Tensor, ...], cos: Tensor, sin: Tensor) -> Tensor | tuple[Tensor, ...]:
    """``x * cos + rotate_half(x) * sin`` (Su et al., arXiv 2104.09864), in the same bits as transformers computes it.

    It is linear in ``x``: plain gradients are relevance gradients under every rule, and it is differentiable forward
    too.

    Args:
        x: (..., D), D even; the coordinates that turn together are half of it apart. Or several of them, as queries and
            keys are: then as many come back.
        cos, sin: (..., D), which broadcast with ``x`` to x's shape. They get no gradient.
    """
    found = _Rotary.apply(cos, sin, *(x if isinstance(x, tuple) else (x,)))
    return found if isinstance(x, tuple) else found[0]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cos, sin, *xs):
        ctx.dtypes = [x.dtype for x in xs]
        ctx.save_for_backward(cos, sin)
        ctx.save_for_forward(cos, sin)
        return tuple(_rotated(xs, cos, sin))

    @staticmethod
    @once
    def backward(ctx, *gs):
        wanted = [i for i in range(len(gs)) if ctx.needs_input_grad[2 + i]]
        found = dict(zip(wanted, _rotated([gs[i] for i in wanted], *ctx.saved_tensors, back=True), strict=True))
        return None, None, *(found[i].to(dtype) if i in found else None for i, dtype in enumerate(ctx.dtypes))

    @staticmethod
    def jvp(ctx, _cos, _sin, *tangents):
        return tuple(_turned(one, *ctx.saved_tensors) for one in tangents)


def _rotated(xs: Sequence[Tensor], cos: Tensor, sin: Tensor, back: bool = False) -> list[Tensor]:
    """Of each; with ``back`` the transpose."""
    if pointwise_native.rotates(xs, cos, sin):
        return pointwise_native.rotary(xs, cos, sin, back)
    return [_turned_back(x, cos, sin) if back else _turned(x, cos, sin) for x in xs]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].sub_(x[..., half:] * sin[..., :half])
    out[..., half:].add_(x[..., :half] * sin[..., half:])
    return out


def _turned_back(g: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = g.shape[-1] // 2
    out, crossed = g * cos, g * sin
    out[..., :half].add_(crossed[..., half:])
    out[..., half:].sub_(crossed[..., :half])
    return out
