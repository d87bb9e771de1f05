"""The gated delta rule of Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464), some tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from .chunks import CHUNK, split
from .identity import share


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, *, rule: str | Rules = "attnlrp"
) -> Tensor:
    """What the state says to each query, after it has learnt that token's value under its key.

    The output is linear in the values: o_j = sum_i W_ji v_i, W made of queries, keys, decay and beta. cp: W is
    constant, the values get all, and relevance is conserved. attnlrp: the values get half; the other half goes to W,
    a quarter to the queries, in which it is linear, and a quarter to key, decay and beta together, by their plain
    gradients, as attention shares its half between queries and keys. No paper has these shares. gradient: plain.

    Memory is linear in the tokens. PyTorch on every device.

    Args:
        query, key: (B, T, H, K), of unit length and scaled as the model has them.
        value: (B, T, H, V). decay: (B, T, H), the logarithm of what the state keeps, at most 0. beta: (B, T, H).

    Returns:
        (B, T, H, V) in float32 or wider.
    """
    shares, length = as_rules(rule).treatment, query.shape[1]
    wide = torch.promote_types(value.dtype, torch.float32)
    others = (share(one, shares.score) for one in (query, key, decay, beta))
    q, k, g, b = (split(one.to(wide)) for one in others)
    v = split(share(value, shares.value).to(wide))
    g = g.squeeze(-1).cumsum(-1)  # (B, H, chunks, C)
    within = (g.unsqueeze(-1) - g.unsqueeze(-2)).tril().exp().tril()  # what is left at i of what came at j
    unlearnt = torch.eye(CHUNK, dtype=wide, device=q.device) + (b * k @ k.mT * within).tril(-1)
    learnt = torch.linalg.solve_triangular(unlearnt, torch.cat([b * v, b * k * g.exp().unsqueeze(-1)], -1), upper=False)
    new, of_state = learnt.split([v.shape[-1], k.shape[-1]], -1)
    weights = (q @ k.mT * within).tril()
    left = g[..., -1:]
    state, out = torch.zeros_like(k[:, :, 0].mT @ v[:, :, 0]), []
    for i in range(q.shape[2]):
        fresh = new[:, :, i] - of_state[:, :, i] @ state
        out.append(q[:, :, i] * g[:, :, i].exp().unsqueeze(-1) @ state + weights[:, :, i] @ fresh)
        kept = (left[:, :, i] - g[:, :, i]).exp().unsqueeze(-1)
        state = state * left[:, :, i].exp().unsqueeze(-1) + (k[:, :, i] * kept).mT @ fresh
    return torch.cat(out, 2)[:, :, :length].transpose(1, 2)

