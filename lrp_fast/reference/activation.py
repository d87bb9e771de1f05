"""Pointwise activations f(z): the identity rule g f(z)/z in closed form, or the plain derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TANH_GELU = math.sqrt(2 / math.pi)


def _inner(z: Tensor) -> Tensor:
    return _TANH_GELU * (z + 0.044715 * z**3)


def ratio(z: Tensor, kind: str) -> Tensor:
    """f(z) / z, with its limit at 0."""
    match kind:
        case "silu":
            return torch.sigmoid(z)
        case "gelu":
            return (1 + torch.erf(z / math.sqrt(2))) / 2
        case "gelu_tanh":
            return (1 + torch.tanh(_inner(z))) / 2
        case "relu":
            return (z > 0).to(z.dtype)
        case "relu2":
            return z.clamp(min=0)
    raise ValueError(f"no activation named {kind!r}")


def derivative(z: Tensor, kind: str) -> Tensor:
    """f'(z)."""
    match kind:
        case "silu":
            return torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))
        case "gelu":
            return ratio(z, kind) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        case "gelu_tanh":
            slope = _TANH_GELU * (1 + 3 * 0.044715 * z**2)
            return ratio(z, kind) + z * (1 - torch.tanh(_inner(z)) ** 2) * slope / 2
        case "relu":
            return (z > 0).to(z.dtype)
        case "relu2":
            return 2 * z.clamp(min=0)
    raise ValueError(f"no activation named {kind!r}")


def activation(z: Tensor, kind: str) -> Tensor:
    """f(z), any shape; ``kind`` is silu, gelu, gelu_tanh, relu or relu2 (squared ReLU)."""
    return z * ratio(z, kind)


def activation_backward(g: Tensor, z: Tensor, kind: str, *, rule: str = "attnlrp") -> Tensor:
    """attnlrp and cp: g f(z)/z; gradient and gim: g f'(z)."""
    return g * (derivative(z, kind) if rule in ("gradient", "gim") else ratio(z, kind))
