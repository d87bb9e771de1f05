"""RWKV's weighted mean of values (Peng et al. 2023, arXiv 2305.13048): an attention without queries, a channel a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rules import Rules, as_rules
from .identity import share
from .recurrence import recurrence


def wkv(key: Tensor, value: Tensor, fading: Tensor, first: Tensor, *, rule: str | Rules = "attnlrp") -> Tensor:
    """The mean of all values up to t, weighted by exp(k_i - fading (t - 1 - i)) and, at t itself, exp(first + k_t).

    The shares are those of P V: values half, and half the weights, which the keys alone make (attnlrp), through the
    plain softmax; or values all, and relevance is conserved (cp). Memory is linear in the tokens. PyTorch on every
    device.

    Args:
        key, value: (B, T, C). fading: (C,), more than 0. first: (C,).

    Returns:
        (B, T, C) in float32 or wider.
    """
    shares, wide = as_rules(rule).treatment, torch.promote_types(value.dtype, torch.float32)
    k, v = share(key, shares.gate).to(wide), share(value, shares.value).to(wide)
    fading, first = fading.detach().to(wide), first.detach().to(wide)
    # Sums of exponentials are kept less the greatest, which cancels: any that is not far from it does, here where it
    # would be before and after a token.
    with torch.no_grad():
        aged = fading * torch.arange(k.shape[1], dtype=wide, device=k.device).unsqueeze(-1)
        after = (k + aged).cummax(1).values - aged
        before = F.pad(after[:, :-1], (0, 0, 1, 0), value=-torch.inf)
        kept = (before - fading - after).exp()
        most = torch.maximum(before, k + first)
        past = (before - most).exp()
    new, now = (k - after).exp(), (k + first - most).exp()
    sums = recurrence(torch.cat([new * v, new], -1), kept.repeat(1, 1, 2))
    total, weight = F.pad(sums[:, :-1], (0, 0, 1, 0)).chunk(2, -1)
    return (past * total + now * v) / (past * weight + now)
