"""A linear recurrence of many channels, each by itself: Griffin's RG-LRU (De et al. 2024, arXiv 2402.19427)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rules import Rules, as_rules
from .once import once

_CHUNK = 64


def recurrence(value: Tensor, kept: Tensor, *, rule: str | Rules = "attnlrp") -> Tensor:
    """h_t = kept_t h_{t - 1} + value_t.

    It is linear in what it carries given what it keeps, and that is a constant, as MambaLRP has it (arXiv 2406.07592);
    relevance is conserved. gradient: plain, of both.

    Args:
        value: (B, T, C). kept: (B, T, C), 0 ... 1.

    Returns:
        (B, T, C) in float32 or wider.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    kept = kept if as_rules(rule).name == "gradient" else kept.detach()
    return _Recurrence.apply(value.to(wide), kept.to(wide))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, kept):
        out = _carried(value, kept)
        ctx.save_for_backward(kept, *([out] if ctx.needs_input_grad[1] else []))
        return out

    @staticmethod
    @once
    def backward(ctx, g):
        kept, *out = ctx.saved_tensors
        # What later tokens keep of each: the same recurrence from the last token to the first.
        later = F.pad(kept[:, 1:], (0, 0, 0, 1)).flip(1)
        g = _carried(g.flip(1), later).flip(1)
        return g, (g * F.pad(out[0][:, :-1], (0, 0, 1, 0)) if out else None)


def _carried(value: Tensor, kept: Tensor) -> Tensor:
    """Chunks side by side, token after token; then what each takes over of those before it."""
    length = value.shape[1]
    value, kept = (F.pad(one, (0, 0, 0, -length % _CHUNK)).unflatten(1, (-1, _CHUNK)) for one in (value, kept))
    out, left = torch.empty_like(value), torch.empty_like(kept)
    out[:, :, 0], left[:, :, 0] = value[:, :, 0], kept[:, :, 0]
    for i in range(1, _CHUNK):
        out[:, :, i] = kept[:, :, i] * out[:, :, i - 1] + value[:, :, i]
        left[:, :, i] = kept[:, :, i] * left[:, :, i - 1]
    state = torch.zeros_like(value[:, 0, 0])
    for i in range(out.shape[1]):
        out[:, i] += left[:, i] * state.unsqueeze(1)
        state = out[:, i, -1]
    return out.flatten(1, 2)[:, :length]
