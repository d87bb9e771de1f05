"""RMSNorm and LayerNorm with frozen statistics, each fused with the residual add before it."""

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
    residual: Tensor | None = None,
    rule: str | Rules = "attnlrp",
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """``weight * x * rstd``, differentiable in ``x`` with ``rstd`` held constant (attnlrp, cp) or plainly (gradient).

    Statistics are taken in float32, in float64 for float64 inputs; for the other dtypes the result has the same bits
    as transformers' Llama-style RMSNorm.

    Args:
        x: (..., D). weight: (D,), gets no gradient.
        residual: of x's shape and dtype. What is normalised is then ``x + residual``, rounded to that dtype, and the
            gradient that reaches the sum, by either result, goes to both.
        dtype: what ``x`` is rounded to once it is normalised, by default its own: a narrower one keeps a float32
            residual stream, and the relevance gradient on it, apart from branches in 16 bits.
        impl: as in `activation`.

    Raises:
        ValueError: for a residual of another shape or dtype.

    Returns:
        (..., D), or with ``residual`` that and the sum.
    """
    _check(x, residual)
    return _RMSNorm.apply(x, residual, weight, eps, as_rules(rule), dtype or x.dtype, _fused(x, impl))


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
    residual: Tensor | None = None,
    rule: str | Rules = "attnlrp",
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm over the last dimension, differentiable in ``x`` with ``rstd`` held constant (attnlrp, cp) or plainly.

    Args:
        x: (..., D). weight, bias: (D,) or None, get no gradient.
        residual, impl: as in `rms_norm`, and so are the errors and what is returned.
    """
    _check(x, residual)
    return _LayerNorm.apply(x, residual, weight, bias, eps, as_rules(rule), _fused(x, impl))


def _check(x, residual):
    if residual is not None and (x.shape, x.dtype) != (residual.shape, residual.dtype):
        told = (f"{tuple(t.shape)} {t.dtype}" for t in (x, residual))
        raise ValueError(f"x and residual must have one shape and dtype, not {' and '.join(told)}")


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
    def forward(ctx, x, residual, weight, eps, rules, dtype, fused):
        ctx.frozen, ctx.fused, ctx.dtype = rules.treatment.frozen_norm, fused, x.dtype
        ctx.set_materialize_grads(False)
        if fused:
            y, rstd, total = kernels("norm").rms_norm_forward(x, weight, eps, residual, dtype)
        else:
            total = None if residual is None else x + residual
            wide = (x if total is None else total).to(torch.promote_types(x.dtype, torch.float32))
            rstd = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
            y = weight * (wide * rstd).to(dtype)
        ctx.save_for_backward(weight, rstd, *([] if ctx.frozen else [x if total is None else total]))
        return y if total is None else (y, total)

    @staticmethod
    @once
    def backward(ctx, g, g_total=None):
        weight, rstd, *rest = ctx.saved_tensors
        if g is None:
            g_in = g_total
        elif ctx.fused:
            given = {"frozen": ctx.frozen, "g_residual": g_total, "dtype": ctx.dtype}
            g_in = kernels("norm").rms_norm_backward(g, weight, rstd, *rest, **given)
        else:
            g_hat = g * weight if rstd.dtype == g.dtype else g.to(rstd.dtype) * weight
            if not ctx.frozen:
                g_hat = _without_radial_part(g_hat, rest[0].to(rstd.dtype) * rstd)
            g_in = _joined(g_hat.mul_(rstd), g_total).to(ctx.dtype)
        return g_in, g_in if ctx.needs_input_grad[1] else None, None, None, None, None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps, rules, fused):
        ctx.frozen, ctx.fused = rules.treatment.frozen_norm, fused
        ctx.set_materialize_grads(False)
        if fused:
            y, mean, rstd, total = kernels("norm").layer_norm_forward(x, weight, bias, eps, residual)
        else:
            total = None if residual is None else x + residual
            y, mean, rstd = torch.native_layer_norm(x if total is None else total, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(weight, rstd, *([] if ctx.frozen else [x if total is None else total, mean]))
        return y if total is None else (y, total)

    @staticmethod
    @once
    def backward(ctx, g, g_total=None):
        weight, rstd, *rest = ctx.saved_tensors
        if g is None:
            g_in = g_total
        elif ctx.fused:
            x, mean = rest or (None, None)
            given = {"frozen": ctx.frozen, "g_residual": g_total}
            g_in = kernels("norm").layer_norm_backward(g, weight, mean, rstd, x, **given)
        else:
            rstd = rstd.to(torch.promote_types(g.dtype, torch.float32))
            g_hat = g.to(rstd.dtype) if weight is None else g.to(rstd.dtype) * weight
            if not ctx.frozen:
                x, mean = rest
                g_hat = _without_radial_part(g_hat, (x.to(rstd.dtype) - mean) * rstd)
            g_hat = g_hat - g_hat.mean(-1, keepdim=True)
            g_in = _joined(g_hat.mul_(rstd), g_total).to(g.dtype)
        return g_in, g_in if ctx.needs_input_grad[1] else None, None, None, None, None, None


def _joined(g_in: Tensor, g_total: Tensor | None) -> Tensor:
    """With what reaches the norm's input by the residual branch."""
    return g_in if g_total is None else g_in.add_(g_total)


def _without_radial_part(g_hat: Tensor, normed: Tensor) -> Tensor:
    """What rstd's own derivative takes away: the component of ``g_hat`` along the normalised vector."""
    return g_hat - normed * (g_hat * normed).mean(-1, keepdim=True)
