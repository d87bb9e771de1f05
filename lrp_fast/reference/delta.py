"""The gated delta rule, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """(B, T, H, V) from query and key (B, T, H, K), value (B, T, H, V), decay, a logarithm, and beta (B, T, H).

    The decay may be one for each row of the state, (B, T, H, K): Kimi's delta attention (arXiv 2510.26692).

    The state S (K, V) forgets, unlearns what it holds under the key, learns the value, and is read by the query:
    S <- diag(exp(decay)) S; S <- S + beta k (v - S^T k)^T; o = S^T q (Yang et al. 2024, arXiv 2412.06464).
    """
    decay = decay if decay.ndim == 4 else decay.unsqueeze(-1)
    state, out = torch.zeros_like(key[:, 0].unsqueeze(-1) * value[:, 0].unsqueeze(-2)), []
    for q, k, v, g, b in zip(*(one.unbind(1) for one in (query, key, value, decay, beta)), strict=True):
        state = state * g.exp().unsqueeze(-1)
        new = v - (state * k.unsqueeze(-1)).sum(-2)
        state = state + (b.unsqueeze(-1) * k).unsqueeze(-1) * new.unsqueeze(-2)
        out.append((state * q.unsqueeze(-1)).sum(-2))
    return torch.stack(out, 1)


def gated_delta_rule_backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, *, rule: str = "attnlrp"
) -> tuple[Tensor, ...]:
    """Relevance gradients of all five. The output is W V, with weights W made of the other four: attnlrp gives half to
    the values and, as in an attention, a quarter to the queries and a quarter to what makes the keys' side, key, decay
    and beta together; cp gives all to the values. Each by its plain gradient. No paper has these shares."""
    shares = {
        "attnlrp": (0.25, 0.25, 0.5, 0.25, 0.25), "cp": (0, 0, 1, 0, 0), "gradient": (1, 1, 1, 1, 1),
    }[rule]  # fmt: skip
    leaves = [one.detach().requires_grad_() for one in (query, key, value, decay, beta)]
    with torch.enable_grad():
        grads = torch.autograd.grad(gated_delta_rule(*leaves), leaves, g)
    return tuple(share * grad for share, grad in zip(shares, grads, strict=True))
