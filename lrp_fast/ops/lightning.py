"""Lightning attention (Qin et al. 2024, arXiv 2401.04658): attention without softmax that fades, some tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from .identity import share


class Fading(NamedTuple):
    """What is left of a head's past, in a block of C tokens, as a model has it in tables."""

    slope: Tensor  # (H, 1, 1): a token later, exp(-slope) is left
    to_queries: Tensor  # (H, C, 1): of what came before the block, at each of its tokens
    of_keys: Tensor  # (H, C, 1): of each token, at the end of the block
    within: Tensor  # (H, C, C): at each token of each, 0 for later ones


def lightning_attention(
    query: Tensor, key: Tensor, value: Tensor, fading: Fading, *, rule: str | Rules = "attnlrp"
) -> Tensor:
    """o_j = sum_{t <= j} exp(-slope (j - t)) <q_j, k_t> v_t.

    The shares are an attention's: values half, queries and keys a quarter each (attnlrp), or values all, and relevance
    is conserved (cp); what fades is a constant. Memory is linear in the tokens. PyTorch on every device.

    Args:
        query, key: (B, H, T, K). value: (B, H, T, V).

    Returns:
        (B, H, T, V).
    """
    shares, size = as_rules(rule).treatment, fading.within.shape[-1]
    query, key = (share(one, shares.score) for one in (query, key))
    value = share(value, shares.value)
    state, out = value.new_zeros(*value.shape[:2], key.shape[-1], value.shape[-1]), []
    for q, k, v in zip(*(one.split(size, 2) for one in (query, key, value)), strict=True):
        tokens = q.shape[2]
        weights = q @ k.mT * fading.within[:, :tokens, :tokens]
        out.append(q * fading.to_queries[:, :tokens] @ state + weights @ v)
        state = state * torch.exp(-fading.slope * tokens) + (k * fading.of_keys[:, -tokens:]).mT @ v
    return torch.cat(out, 2)
