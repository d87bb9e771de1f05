"""RWKV's weighted mean, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def wkv(key: Tensor, value: Tensor, fading: Tensor, first: Tensor) -> Tensor:
    """(B, T, C) from key and value (B, T, C), fading > 0 and first (C,): each channel by itself, the mean of all values
    up to t, weighted by exp(k_i - fading (t - 1 - i)) and, at t itself, by exp(first + k_t) (Peng et al. 2023, arXiv
    2305.13048)."""
    out = []
    for t in range(key.shape[1]):
        ages = torch.arange(t, -1, -1, dtype=key.dtype, device=key.device).unsqueeze(-1) - 1
        scores = key[:, : t + 1] - fading * ages
        scores = torch.cat([scores[:, :t], (key[:, t] + first).unsqueeze(1)], 1)
        out.append((scores.softmax(1) * value[:, : t + 1]).sum(1))
    return torch.stack(out, 1)


def wkv_backward(
    g: Tensor, key: Tensor, value: Tensor, fading: Tensor, first: Tensor, *, rule: str = "attnlrp"
) -> tuple[Tensor, Tensor]:
    """Relevance gradients of keys and values: values and weights half each, and the keys, of which alone the weights
    are made, through the plain softmax (attnlrp); or the values all (cp)."""
    of_key, of_value = {"attnlrp": (0.5, 0.5), "cp": (0, 1), "gradient": (1, 1)}[rule]
    leaves = [key.detach().requires_grad_(), value.detach().requires_grad_()]
    with torch.enable_grad():
        grads = torch.autograd.grad(wkv(*leaves, fading, first), leaves, g)
    return of_key * grads[0], of_value * grads[1]
