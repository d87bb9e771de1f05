"""Attention whose softmax passes gradients at another temperature than it computes (GIM, arXiv 2505.17630)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..rules import Treatment
from .once import once


def attention(
    attend: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    treatment: Treatment,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    chosen,
    kept,
    dropped: list[Tensor] | None,
    **given,
) -> Tensor:
    """As `lrp_fast.ops.attention`, which ``attend`` is, of a treatment whose temperature T is not 1.

    The softmax's Jacobian at s / T is that of a plain attention whose scale, soft-cap and sinks are divided by T. What
    this hands to queries and keys has its scale / T as a factor, and so T times that is it: two attentions, of which
    one is forward and goes to the values, and the other to queries and keys, by whatever backend serves them.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    own = {"scale": scale, "softcap": softcap, "sinks": sinks, "kept": kept, "dropped": dropped}
    out = attend(query, key, value, rule="cp", chosen=chosen, **own, **given)
    if not torch.is_grad_enabled() or not (query.requires_grad or key.requires_grad):
        return _Both.apply(out, None, treatment.value, 0.0)
    t = treatment.temperature
    softcap, sinks = (None if one is None else one / t for one in (softcap, sinks))
    chosen = chosen if kept is None else kept.chosen
    tempered = {"scale": scale / t, "softcap": softcap, "sinks": sinks, "chosen": chosen}
    other = attend(query, key, value.detach(), rule="gradient", **tempered, **given)
    return _Both.apply(out, other, treatment.value, t * treatment.score)


class _Both(torch.autograd.Function):
    """The first of two, whose gradient, in shares of its own, goes to both."""

    @staticmethod
    def forward(ctx, one, other, share, other_share):
        ctx.shares = (share, other_share)
        return one.view_as(one)

    @staticmethod
    @once
    def backward(ctx, g):
        wanted = zip(ctx.shares, ctx.needs_input_grad, strict=False)
        return *(g * share if needed else None for share, needed in wanted), None, None
