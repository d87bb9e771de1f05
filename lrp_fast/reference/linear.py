"""Linear maps: the plain transpose, the epsilon rule and the signed gamma rule."""

from __future__ import annotations

import torch
from torch import Tensor


def sign(z: Tensor) -> Tensor:
    """Sign with sign(0) = +1, as the stabilisers need it."""
    return torch.where(z < 0, -1.0, 1.0).to(z.dtype)


def same_sign(c: Tensor, sigma: Tensor) -> Tensor:
    """The share of a contribution that has sign ``sigma``: 1, 0, or one half for a contribution of zero."""
    return (1 + torch.sign(c) * sigma) / 2


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: an output that nothing contributes to passes nothing on."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def epsilon_factor(z: Tensor, epsilon: float) -> Tensor:
    """z / (z + epsilon sign z); exactly 1 for epsilon = 0, where the rule is off."""
    return torch.ones_like(z) if epsilon == 0 else z / (z + epsilon * sign(z))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    z = x @ weight.T
    return z if bias is None else z + bias


def linear_backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, epsilon: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Relevance gradient of ``x``, (..., in), from that of the output, ``g`` (..., out).

    gamma > 0: R_i = sum_j s_j (c_ij + gamma c_ij^sigma_j) with c_ij = x_i w_ij, sigma_j = sign(z_j) and
    s_j = R_j / (z_j + gamma z_j^sigma_j + epsilon sigma_j), where z_j^sigma sums the contributions (the bias
    is one of them) of that sign. This is Zennit's ``Gamma``.
    """
    z = linear(x, weight, bias)
    if gamma == 0:
        return (g * epsilon_factor(z, epsilon)) @ weight
    sigma = sign(z)
    c = x.unsqueeze(-2) * weight  # (..., out, in)
    kept = same_sign(c, sigma.unsqueeze(-1))
    z_sigma = (c * kept).sum(-1)
    if bias is not None:
        z_sigma = z_sigma + bias * same_sign(bias.expand_as(z), sigma)
    s = quotient(g * z, z + gamma * z_sigma + epsilon * sigma)
    return (s.unsqueeze(-1) * weight * (1 + gamma * kept)).sum(-2)
