"""xLSTM's matrix memory, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mlstm(
    query: Tensor, key: Tensor, value: Tensor, take: Tensor, keep: Tensor, eps: float = 1e-6, frozen: bool = False
) -> Tensor:
    """(B, H, T, V) from query and key (B, H, T, K), value (B, H, T, V) and, before their exponential and their sigmoid,
    how much is taken in and kept (B, H, T).

    C <- f C + i k v^T; n <- f n + i k; h = C^T q / max(|n^T q|, 1), with f the sigmoid of keep, i = exp(take) and q
    over the root of K (Beck et al. 2024, arXiv 2405.04517). C and n are held less exp(m), m <- max(m + log f, take),
    and eps is added to what is divided by. ``frozen``: that, and m, which cancels otherwise, are constants.
    """
    query = query * query.shape[-1] ** -0.5
    memory = torch.zeros_like(key[:, :, 0].unsqueeze(-1) * value[:, :, 0].unsqueeze(-2))
    norm, most, out = torch.zeros_like(key[:, :, 0]), torch.zeros_like(take[:, :, 0]), []
    for q, k, v, i, f in zip(*(one.unbind(2) for one in (query, key, value, take, keep)), strict=True):
        new = torch.maximum(most + F.logsigmoid(f), i)
        new = new.detach() if frozen else new
        left, taken = ((one - new).exp().unsqueeze(-1) for one in (most + F.logsigmoid(f), i))
        memory = left.unsqueeze(-1) * memory + (taken * k).unsqueeze(-1) * v.unsqueeze(-2)
        norm, most = left * norm + taken * k, new
        by = torch.maximum((norm * q).sum(-1).abs(), (-most).exp()).unsqueeze(-1) + eps
        out.append((memory * q.unsqueeze(-1)).sum(-2) / (by.detach() if frozen else by))
    return torch.stack(out, 2)


def mlstm_backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, take: Tensor, keep: Tensor, *, rule: str = "attnlrp"
) -> tuple[Tensor, ...]:
    """Relevance gradients of all five. What it divides by is a constant, as a norm's rstd; then the output is W V, and
    shares are those of a gated delta rule: half to the values, a quarter to the queries, a quarter to what makes the
    keys' side, key and both gates together (attnlrp); or all to the values (cp). No paper has these shares."""
    shares = {
        "attnlrp": (0.25, 0.25, 0.5, 0.25, 0.25), "cp": (0, 0, 1, 0, 0), "gradient": (1, 1, 1, 1, 1),
    }[rule]  # fmt: skip
    leaves = [one.detach().requires_grad_() for one in (query, key, value, take, keep)]
    with torch.enable_grad():
        grads = torch.autograd.grad(mlstm(*leaves, frozen=rule != "gradient"), leaves, g)
    return tuple(share * grad for share, grad in zip(shares, grads, strict=True))
