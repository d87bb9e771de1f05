"""RMSNorm and LayerNorm: the plain gradient with rstd held constant (attnlrp, cp), or the plain gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor, eps: float, *, rule: str = "attnlrp") -> Tensor:
    """Relevance gradient of ``x``, (..., D)."""
    rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    g_hat = g * weight
    if rule == "gradient":
        g_hat = g_hat - x * rstd**2 * (g_hat * x).mean(-1, keepdim=True)
    return g_hat * rstd


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., D), weight and bias (D,) -> (..., D)."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm_backward(g: Tensor, x: Tensor, weight: Tensor | None, eps: float, *, rule: str = "attnlrp") -> Tensor:
    """Relevance gradient of ``x``, (..., D). Subtracting the mean is linear and stays."""
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    g_hat = g if weight is None else g * weight
    if rule == "gradient":
        g_hat = g_hat - centred * rstd**2 * (g_hat * centred).mean(-1, keepdim=True)
    return (g_hat - g_hat.mean(-1, keepdim=True)) * rstd
