"""Pointwise activations: forward, the ratio f(z)/z in closed form, and the derivative, one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rules import Rules, as_rules
from .backend import fused, kernels
from .once import once

_TANH_GELU = math.sqrt(2 / math.pi)


class Activation(NamedTuple):
    forward: Callable[[Tensor], Tensor]
    ratio: Callable[[Tensor], Tensor]  # f(z)/z with its limit at 0
    derivative: Callable[[Tensor], Tensor]


def _silu_derivative(z):
    sigma = torch.sigmoid(z)
    return sigma * (1 + z * (1 - sigma))


def _gelu_ratio(z):
    return torch.erf(z * math.sqrt(0.5)).add_(1).mul_(0.5)


def _gelu_derivative(z):
    return _gelu_ratio(z) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _gelu_tanh_ratio(z):
    return torch.tanh(_TANH_GELU * z * (1 + 0.044715 * z * z)).add_(1).mul_(0.5)


def _gelu_tanh_derivative(z):
    half = _gelu_tanh_ratio(z)  # h, with 1 - tanh^2 = 4 h (1 - h)
    rest = torch.sigmoid(-2 * _TANH_GELU * z * (1 + 0.044715 * z * z))  # 1 - h, also where h is close to 1
    return half + z * 2 * half * rest * _TANH_GELU * (1 + 3 * 0.044715 * z * z)


def _step(z):
    return (z > 0).to(z.dtype)


ACTIVATIONS = {
    "silu": Activation(F.silu, torch.sigmoid, _silu_derivative),
    "gelu": Activation(F.gelu, _gelu_ratio, _gelu_derivative),
    "gelu_tanh": Activation(lambda z: F.gelu(z, approximate="tanh"), _gelu_tanh_ratio, _gelu_tanh_derivative),
    "relu": Activation(F.relu, _step, _step),
    "relu2": Activation(lambda z: F.relu(z).square(), F.relu, lambda z: 2 * F.relu(z)),
}


def find(kind: str) -> Activation:
    """The table's entry; ValueError for a name that it lacks."""
    if kind not in ACTIVATIONS:
        raise ValueError(f"no activation named {kind!r}: choose one of {', '.join(map(repr, ACTIVATIONS))}")
    return ACTIVATIONS[kind]


def ratio(z: Tensor, kind: str) -> Tensor:
    """f(z)/z with its limit at 0, in float32 at least."""
    return find(kind).ratio(z.to(torch.promote_types(z.dtype, torch.float32)))


def slope(z: Tensor, kind: str, rules: Rules) -> Tensor:
    """What the relevance gradient is multiplied with: f(z)/z or f'(z), in float32 at least."""
    if rules.treatment.ratio:
        return ratio(z, kind)
    return find(kind).derivative(z.to(torch.promote_types(z.dtype, torch.float32)))


def activation(z: Tensor, kind: str, *, rule: str | Rules = "attnlrp", impl: str = "auto") -> Tensor:
    """f(z), differentiable by the identity rule ``g f(z)/z`` (attnlrp, cp) or plainly (gradient).

    Args:
        z: any shape, any float dtype.
        kind: "silu", "gelu", "gelu_tanh", "relu" or "relu2".
        impl: "auto", "triton" or "torch", see `lrp_fast.ops.backend.fused`.

    Raises:
        ValueError: for an unknown ``kind``.
    """
    find(kind)
    return _Activation.apply(z, kind, as_rules(rule), fused(z, impl))


def activation_jvp(z: Tensor, part: Tensor, kind: str, *, rule: str | Rules = "attnlrp") -> tuple[Tensor, Tensor]:
    """``activation(z, ...)``, and what ``part``, a share of ``z``, contributes to it under the rule."""
    return find(kind).forward(z), (part * slope(z, kind, as_rules(rule))).to(z.dtype)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, kind, rules, fused):
        ctx.save_for_backward(z)
        ctx.kind, ctx.rules, ctx.fused = kind, rules, fused
        return kernels("activation").activation_forward(z, kind) if fused else find(kind).forward(z)

    @staticmethod
    @once
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        if ctx.fused:
            g_in = kernels("activation").activation_backward(g, z, ctx.kind, ratio=ctx.rules.treatment.ratio)
        else:
            g_in = (g * slope(z, ctx.kind, ctx.rules)).to(z.dtype)
        return g_in, None, None, None
