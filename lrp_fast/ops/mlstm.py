"""xLSTM's matrix memory (Beck et al. 2024, arXiv 2405.04517), some tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rules import Rules, as_rules
from .identity import share

_CHUNK = 64


def mlstm(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    take: Tensor,
    keep: Tensor,
    *,
    eps: float = 1e-6,
    rule: str | Rules = "attnlrp",
) -> Tensor:
    """Linear attention whose past fades by what each token keeps of it, over a norm.

    What it divides by is a constant, as a norm's rstd; then the output is linear in the values, and the shares are
    those of `gated_delta_rule`: the values get half, the queries a quarter, and key and both gates together a quarter
    (attnlrp); or the values get all, and relevance is conserved (cp). No paper has these shares. gradient: plain.

    Memory is linear in the tokens. PyTorch on every device.

    Args:
        query, key: (B, H, T, K). value: (B, H, T, V).
        take, keep: (B, H, T), before their exponential and their sigmoid.

    Returns:
        (B, H, T, V) in float32 or wider.
    """
    shares, wide = as_rules(rule).treatment, torch.promote_types(value.dtype, torch.float32)
    query, key, take, keep = (share(one, shares.score).to(wide) for one in (query, key, take, keep))
    query, keep = query * query.shape[-1] ** -0.5, F.logsigmoid(keep)
    value = F.pad(share(value, shares.value).to(wide), (0, 1), value=1.0)  # behind them, what is divided by
    memory = (key[:, :, 0].unsqueeze(-1) * value[:, :, 0].unsqueeze(-2)).detach() * 0
    most, out = take.new_zeros(*take.shape[:2], 1), []
    for q, k, v, i, f in zip(*(one.split(_CHUNK, 2) for one in (query, key, value, take, keep)), strict=True):
        f = f.cumsum(-1)
        # All is held less the exponential of m, the greatest: what is divided by may lose it to eps alone.
        m = f + torch.maximum(most, (i - f).cummax(-1).values)
        m = m.detach() if shares.frozen_norm else m
        later = torch.ones(f.shape[-1], f.shape[-1], dtype=torch.bool, device=f.device).triu(1)
        left = (f.unsqueeze(-1) + (i - f).unsqueeze(-2) - m.unsqueeze(-1)).masked_fill(later, -torch.inf).exp()
        found = (f + most - m).exp().unsqueeze(-1) * (q @ memory) + q @ k.mT * left @ v
        by = torch.maximum(found[..., -1:].abs(), (-m).exp().unsqueeze(-1)) + eps
        out.append(found[..., :-1] / (by.detach() if shares.frozen_norm else by))
        end, last = f[..., -1:], m[..., -1:]
        learnt = (k * (end - f + i - last).exp().unsqueeze(-1)).mT @ v
        memory, most = (end + most - last).exp().unsqueeze(-1) * memory + learnt, last
    return torch.cat(out, 2)
