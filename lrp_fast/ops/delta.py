"""The gated delta rule of Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464), some tokens at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..rules import Rules, as_rules
from .chunks import CHUNK, split
from .identity import share

_TOGETHER = 16  # chunks


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
        value: (B, T, H, V). beta: (B, T, H).
        decay: (B, T, H), the logarithm of what the state keeps, at most 0; or (B, T, H, K), of each of its rows, as
            Kimi's delta attention has it (arXiv 2510.26692).

    Returns:
        (B, T, H, V) in float32 or wider.
    """
    shares, length = as_rules(rule).treatment, query.shape[1]
    wide = torch.promote_types(value.dtype, torch.float32)
    others = (share(one, shares.score) for one in (query, key, decay, beta))
    q, k, g, b = (split(one.to(wide)) for one in others)
    v = split(share(value, shares.value).to(wide))
    state, out = torch.zeros_like(k[:, :, 0].mT @ v[:, :, 0]), []
    for parts in zip(*(one.split(_TOGETHER, 2) for one in (q, k, v, g, b)), strict=True):
        if q.shape[2] <= _TOGETHER:
            found, state = _chunks_from(state, *parts)
        else:  # what autograd keeps of them is as much as of many layers: it is made again on the way back
            found, state = checkpoint(_chunks_from, state, *parts, use_reentrant=False, preserve_rng_state=False)
        out.append(found)
    return torch.cat(out, 2)[:, :, :length].transpose(1, 2)


def _chunks_from(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What the queries of some chunks hear (B, H, T, V), and the state (B, H, K, V) after them."""
    g = g.cumsum(-2)  # (B, H, chunks, C, 1 or K)
    at_keys, weights = _within((b * k, q), k, g)
    unlearnt = torch.eye(CHUNK, dtype=q.dtype, device=q.device) + at_keys.tril(-1)
    learnt = torch.linalg.solve_triangular(unlearnt, torch.cat([b * v, b * k * g.exp()], -1), upper=False)
    new, of_state = learnt.split([v.shape[-1], k.shape[-1]], -1)
    left, out = g[..., -1:, :], []
    for i in range(q.shape[2]):
        fresh = new[:, :, i] - of_state[:, :, i] @ state
        out.append(q[:, :, i] * g[:, :, i].exp() @ state + weights[:, :, i] @ fresh)
        kept = (left[:, :, i] - g[:, :, i]).exp()
        state = state * left[:, :, i].exp().mT + (k[:, :, i] * kept).mT @ fresh
    return torch.cat(out, 2), state


def _within(lates: tuple[Tensor, ...], early: Tensor, g: Tensor) -> Iterable[Tensor]:
    """For each of ``lates`` (..., C, C): what is left at i of what came at j, sum_k late_ik early_jk exp(g_ik - g_jk),
    0 for j > i.

    Of a decay of its own for each k, exp(g_i) and exp(-g_j) apart would overflow. Each pair meets in the middle m of
    the smallest of the chunk's halves, quarters ... that holds both, by exp(g_i - g_m) and exp(g_m - g_j), at most 1.
    """
    if g.shape[-1] == 1:
        left = (g - g.mT).tril().exp().tril()
        return [late @ early.mT * left for late in lates]
    late = torch.stack(lates)
    found = (late * early).sum(-1)[..., None, None]  # (..., C / s, s, s)
    while (s := found.shape[-1]) < CHUNK:
        (_, late_s), (early_s, _), (before, behind) = (
            one.unflatten(-2, (-1, 2, s)).unbind(-3) for one in (late, early, g)
        )
        middle = before[..., -1:, :]
        met = late_s * (behind - middle).exp() @ (early_s * (middle - before).exp()).mT
        first, second = found.unflatten(-3, (-1, 2)).unbind(-3)
        upper, lower = torch.cat([first, torch.zeros_like(first)], -1), torch.cat([met, second], -1)
        found = torch.cat([upper, lower], -2)
    return found.squeeze(-3)
