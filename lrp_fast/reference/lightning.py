"""Lightning attention, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def lightning_attention(query: Tensor, key: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """(B, H, T, V) from query and key (B, H, T, K), value (B, H, T, V) and slope (H,), what a head forgets by.

    The state S (K, V) forgets, learns the value under its key, and is read by the query: S <- exp(-slope) S + k v^T;
    o = S^T q (Qin et al. 2024, arXiv 2401.04658).
    """
    state, out = torch.zeros_like(key[:, :, 0].unsqueeze(-1) * value[:, :, 0].unsqueeze(-2)), []
    for q, k, v in zip(*(one.unbind(2) for one in (query, key, value)), strict=True):
        state = state * (-slope).exp()[:, None, None] + k.unsqueeze(-1) * v.unsqueeze(-2)
        out.append((state * q.unsqueeze(-1)).sum(-2))
    return torch.stack(out, 2)


def lightning_attention_backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, slope: Tensor, *, rule: str = "attnlrp"
) -> tuple[Tensor, ...]:
    """Relevance gradients of queries, keys and values: those of an attention that has no softmax."""
    shares = {"attnlrp": (0.25, 0.25, 0.5), "cp": (0, 0, 1), "gradient": (1, 1, 1)}[rule]
    leaves = [one.detach().requires_grad_() for one in (query, key, value)]
    with torch.enable_grad():
        grads = torch.autograd.grad(lightning_attention(*leaves, slope), leaves, g)
    return tuple(share * grad for share, grad in zip(shares, grads, strict=True))
