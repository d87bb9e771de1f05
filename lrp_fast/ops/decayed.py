"""Edges of scans whose state only fades: Mamba 1 and 2, linear attention with decay, RG-LRU; and of convolutions.

o_j = sum_{t <= j} W_jt v_t, with weights W that are constants of the rule (MambaLRP, arXiv 2406.07592), so that what
row j passes to the values at t is W_jt <u_j, v~_t>, u the relevance gradient at the output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .lightning import Fading
from .mixing import on_diagonal, shifted

# Numbers of one kind at work, 64 MiB of them in float32.
ROOM = 1 << 24


def decayed_edges(
    u: Tensor, part: Tensor, query: Tensor, key: Tensor, decay: Tensor, size: Tensor, skip: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Of W_jt = size_t sum_n q_jn k_tn exp(G_jn - G_tn), G the running sum of the decay, plus ``skip`` where j = t.

    Args:
        u: (T, H, V). part: (lags, T, H, V), as in `mixed`.
        query, key: (T, G, K), each of H / G heads. decay: (T, H, K), or (T, H, 1) for all n; logarithms, at most 0.
        size: (T, H), what a token's values are multiplied by before they are carried. skip: (H,).

    Returns:
        as in `mixed`.
    """
    wide = torch.promote_types(u.dtype, torch.float32)
    u, part, query, key, size = (one.to(wide) for one in (u, part, query, key, size))
    sums = decay.double().cumsum(0)  # of thousands of tokens: their differences are what counts
    carried = part * size.unsqueeze(-1)
    by = _by_channels if u.shape[-1] == 1 else _by_heads

    def edges(rows: Tensor) -> Tensor:
        out = u.new_zeros(len(rows), int(rows[-1]) + 1)
        by(out, rows, u, carried, query, key, sums)
        for lag, of_lag in enumerate(() if skip is None else part):
            on_diagonal((u[rows] * skip.to(wide).view(1, -1, 1) * of_lag[rows]).flatten(1).sum(-1), rows, lag, out)
        return out

    return edges


def fading_attention_edges(
    g: Tensor,
    given: tuple[Tensor, ...],
    back: tuple,
    parts: tuple,
    *,
    fading: Fading,
    value_share: float,
    score_share: float,
) -> Callable[[Tensor], Tensor]:
    """Of `lightning_attention`: what row j passes to values and keys at t, times what is left at j of what came at t,

        <q_j, k_t> <u_j, v~_t>   and   <q_j, k~_t> <u_j, v_t>,

    and to its own query <g_q,j, q~_j>, each times its share.

    Args:
        given: value (T, H, V), query and key (T, H, K). back, parts: as in `mixed`, of one lag.
        fading: the model's tables.
    """
    wide = torch.promote_types(g.dtype, torch.float32)
    u, (value, query, key) = g.to(wide), (one.to(wide) for one in given)
    of_value, of_query, of_key = (one[0].to(wide) for one in parts)
    g_query = back[1].to(wide)

    def edges(rows: Tensor) -> Tensor:
        end = int(rows[-1]) + 1
        out = u.new_zeros(len(rows), end)
        columns = torch.arange(end, device=rows.device)
        for head in range(u.shape[1]):
            q, v = query[rows, head], u[rows, head]
            part = (q @ key[:end, head].mT) * (v @ of_value[:end, head].mT) * value_share
            if score_share:
                part += (q @ of_key[:end, head].mT) * (v @ value[:end, head].mT) * score_share
            out += part * _left(fading, head, rows, columns).to(wide)
        if score_share:
            on_diagonal((g_query[rows] * of_query[rows]).flatten(1).sum(-1), rows, 0, out)
        return out

    return edges


def _left(fading: Fading, head: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(R, S): what is left at rows of what came at columns, as `lightning_attention` has it of a model's tables."""
    within, size = fading.within[head], fading.within.shape[-1]
    behind = rows.unsqueeze(-1) // size - columns // size  # blocks
    before = fading.to_queries[head][rows % size] * fading.of_keys[head][columns % size].mT
    before = before * (-fading.slope[head] * size * (behind - 1).clamp(min=0)).exp()
    inside = within[rows % size][:, columns % size]
    return torch.where(behind > 0, before, torch.where(behind < 0, 0, inside))


def convolved_edges(u: Tensor, part: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Of o_j = sum_l weight[:, -1 - l] v_{j - l}, each channel by itself.

    Args:
        u: (T, C, 1). part: (lags, T, C, 1). weight: (C, L).
    """
    wide = torch.promote_types(u.dtype, torch.float32)
    u, part, weight = (one.to(wide) for one in (u[..., 0], part[..., 0], weight))

    def edges(rows: Tensor) -> Tensor:
        out = u.new_zeros(len(rows), int(rows[-1]) + 1)
        for back in range(weight.shape[1]):
            for lag, of_lag in enumerate(part):
                found = (u[rows] * weight[:, -1 - back] * of_lag[(rows - back).clamp(min=0)]).sum(-1)
                on_diagonal(found, rows, back + lag, out)
        return out

    return edges


def _by_heads(out, rows, u, part, query, key, sums) -> None:
    """One decay a head; the weights of one head at a time, as an attention's."""
    end, each = out.shape[1], u.shape[1] // query.shape[1]
    later = torch.arange(end, device=rows.device) > rows.unsqueeze(-1)
    for head in range(u.shape[1]):
        if head % each == 0:
            scores = query[rows, head // each] @ key[:end, head // each].mT
        fading = (sums[rows, head] - sums[:end, head, 0]).masked_fill_(later, -torch.inf).exp_()
        weights = scores * fading.to(scores.dtype)
        for lag, of_lag in enumerate(part):
            shifted(weights * (u[rows, head] @ of_lag[:end, head].mT), lag, out)


def _by_channels(out, rows, u, part, query, key, sums) -> None:
    """Values of one number: a product over channels and what each carries, with the first row of the block as the time
    from which both sides fade, so that nothing grows; within the block entry by entry."""
    first, end, each = int(rows[0]), out.shape[1], u.shape[1] // query.shape[1]
    query, key = query[rows], key[:end]
    if query.shape[1] > 1:  # else one for all
        query, key = (one.repeat_interleave(each, 1) for one in (query, key))  # (R, H, K), (S, H, K)
    read = u[rows] * query
    left = (read * (sums[rows] - sums[first]).exp().to(u.dtype)).flatten(1)
    step = max(1, ROOM // left.shape[1])
    for start in range(0, first, step):
        these = slice(start, min(start + step, first))
        faded = key[these] * (sums[first] - sums[these]).exp().to(u.dtype)
        for lag, of_lag in enumerate(part):
            shifted(left @ (of_lag[these] * faded).flatten(1).mT, lag, out, start)
    for t in range(first, end):
        faded = read * key[t] * (sums[rows] - sums[t]).clamp(max=0).exp().to(u.dtype)  # (R, H, K)
        for lag, of_lag in enumerate(part):
            entries = (faded * of_lag[t]).flatten(1).sum(-1)
            shifted(torch.where(rows < t, 0, entries).unsqueeze(-1), lag, out, t)
