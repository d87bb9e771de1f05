"""RMSNorm and LayerNorm with frozen statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from .backend import fused, kernels
from .once import once


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    rule: str | Rules = "attnlrp",
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> Tensor:
    """``weight * x * rstd``, differentiable in ``x`` with ``rstd`` held constant (attnlrp, cp) or plainly (gradient).

    Statistics are taken in float32, in float64 for float64 inputs; for the other dtypes the result has the same bits
    as transformers' Llama-style RMSNorm.

    Args:
        x: (..., D). weight: (D,), gets no gradient.
        dtype: what ``x`` is rounded to once it is normalised, by default its own: a narrower one keeps a float32
            residual stream, and the relevance gradient on it, apart from branches in 16 bits.
        impl: as in `activation`.
    """
    return _RMSNorm.apply(x, weight, eps, as_rules(rule), dtype or x.dtype, _fused(x, impl))


def rms_norm_jvp(
    x: Tensor,
    part: Tensor,
    weight: Tensor,
    eps: float,
    *,
    rule: str | Rules = "attnlrp",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``rms_norm(x, ...)``, and what ``part``, a share of ``x``, contributes to it under the rule; as `linear_jvp`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normed = wide * rstd
    part = part.to(wide.dtype)
    if not as_rules(rule).treatment.frozen_norm:
        part = _without_radial_part(part, normed)
    dtype = dtype or x.dtype
    return weight * normed.to(dtype), weight * (part * rstd).to(dtype)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    rule: str | Rules = "attnlrp",
    impl: str = "auto",
) -> Tensor:
    """LayerNorm over the last dimension, differentiable in ``x`` with ``rstd`` held constant (attnlrp, cp) or plainly.

    Args:
        x: (..., D). weight, bias: (D,) or None, get no gradient.
        impl: as in `activation`.
    """
    return _LayerNorm.apply(x, weight, bias, eps, as_rules(rule), _fused(x, impl))


def layer_norm_jvp(
    x: Tensor,
    part: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    rule: str | Rules = "attnlrp",
) -> tuple[Tensor, Tensor]:
    """``layer_norm(x, ...)``, and what ``part``, a share of ``x``, adds to it under the rule; as `linear_jvp`."""
    y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    part = (part - part.mean(-1, keepdim=True)) * rstd
    if not as_rules(rule).treatment.frozen_norm:
        part = _without_radial_part(part, (x - mean) * rstd)
    return y, (part if weight is None else part * weight).to(y.dtype)


def _fused(x: Tensor, impl: str) -> bool:
    return fused(x, impl, served=x.shape[-1] <= 32768)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, rules, dtype, fused):
        ctx.frozen, ctx.fused, ctx.dtype = rules.treatment.frozen_norm, fused, x.dtype
        if fused:
            y, rstd, _ = kernels("norm").rms_norm_forward(x, weight, eps, dtype=dtype)
            ctx.save_for_backward(weight, rstd, *([] if ctx.frozen else [x]))
            return y
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(weight, rstd, *([] if ctx.frozen else [x]))
        return weight * (wide * rstd).to(dtype)

    @staticmethod
    @once
    def backward(ctx, g):
        weight, rstd, *rest = ctx.saved_tensors
        if ctx.fused:
            given = {"frozen": ctx.frozen, "dtype": ctx.dtype}
            g_in, _ = kernels("norm").rms_norm_backward(g, weight, rstd, *rest, **given)
            return g_in, None, None, None, None, None
        g_hat = g * weight if rstd.dtype == g.dtype else g.to(rstd.dtype) * weight
        if not ctx.frozen:
            g_hat = _without_radial_part(g_hat, rest[0].to(rstd.dtype) * rstd)
        return g_hat.mul_(rstd).to(ctx.dtype), None, None, None, None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, rules, fused):
        ctx.frozen, ctx.fused = rules.treatment.frozen_norm, fused
        if fused:
            y, mean, rstd, _ = kernels("norm").layer_norm_forward(x, weight, bias, eps)
        else:
            y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(weight, rstd, *([] if ctx.frozen else [x, mean]))
        return y

    @staticmethod
    @once
    def backward(ctx, g):
        weight, rstd, *rest = ctx.saved_tensors
        if ctx.fused:
            x, mean = rest or (None, None)
            g_in, _ = kernels("norm").layer_norm_backward(g, weight, mean, rstd, x, frozen=ctx.frozen)
            return g_in, None, None, None, None, None
        rstd = rstd.to(torch.promote_types(g.dtype, torch.float32))
        g_hat = g.to(rstd.dtype) if weight is None else g.to(rstd.dtype) * weight
        if not ctx.frozen:
            x, mean = rest
            g_hat = _without_radial_part(g_hat, (x.to(rstd.dtype) - mean) * rstd)
        g_hat = g_hat - g_hat.mean(-1, keepdim=True)
        return g_hat.mul_(rstd).to(g.dtype), None, None, None, None, None


def _without_radial_part(g_hat: Tensor, normed: Tensor) -> Tensor:
    """What rstd's own derivative takes away: the component of ``g_hat`` along the normalised vector."""
    return g_hat - normed * (g_hat * normed).mean(-1, keepdim=True)
