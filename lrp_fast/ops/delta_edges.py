"""Edges of the gated delta rule in closed form.

The state before token t, S, fades to alpha_t S, unlearns what it says to the key, and learns: S_t = alpha_t S +
beta_t k_t d_t^T with d_t = v_t - alpha_t S^T k_t. Whatever is written into it at t under x, as x e^T, row j reads as
p_jt . x, with p_jj = q_j and p_j,t-1 = alpha_t (1 - beta_t k_t k_t^T) p_jt. So, u_j being the relevance gradient at the
output, row j passes

    to the values     beta_t (p . k_t) <u_j, v~_t>
    to the keys       beta_t [ (p . k~_t) <u_j, d_t> - (p . k_t) <u_j, alpha_t S^T k~_t> ]
    to beta           beta~_t (p . k_t) <u_j, d_t>
    to the decay      decay~_t sum_{s < t} beta_s (p_js . k_s) <u_j, v_s>, all that has faded at t
    to the queries    <g_q,j, q~_j>

each times the rule's share. The p . x come by chunks, from the last one down: p at the end of a chunk, times what the
chunk makes of a write in it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .chunks import CHUNK, Chunks
from .mixing import on_diagonal, shifted


def delta_edges(
    g: Tensor, given: tuple[Tensor, ...], back: tuple, parts: tuple, *, value_share: float, score_share: float
) -> Callable[[Tensor], Tensor]:
    """A `mixed` form. ``given``: value (T, H, V), query, key (T, H, K), decay, beta (T, H); as `gated_delta_rule`."""
    wide = torch.promote_types(g.dtype, torch.float32)
    length, heads = g.shape[:2]
    value, query, key, decay, beta = (one.to(wide) for one in given)
    of_value, of_query, of_key, of_decay, of_beta = (None if one is None else one.to(wide) for one in parts)
    chunks = Chunks.of(*(one.unsqueeze(0) for one in (query, key, value, decay, beta)))
    writes = [key]  # what is followed to the rows: the keys, and what the input contributes to them
    if score_share:
        of_write = of_key * beta[None, :, :, None]
        writes += of_write
        learnt = value - chunks.read(key)
        unlearnt = [chunks.read(one) for one in of_key]
        g_query = back[1].to(wide)
    inner, outer = zip(*(chunks.responses(one) for one in writes), strict=True)

    def edges(rows: Tensor) -> Tensor:
        end, chunk = int(rows[-1]) + 1, int(rows[0]) // CHUNK
        out, within = g.new_zeros(len(rows), end, dtype=wide), rows - chunk * CHUNK
        u = g[rows].to(wide).transpose(0, 1)  # (H, R, V)
        faded = []
        reading = chunks.reading(chunk, within)
        for place in range(chunk, -1, -1):
            start, stop = place * CHUNK, min((place + 1) * CHUNK, length)
            here = slice(start, stop)
            if place == chunk:
                reads = [one[:, place, within, : stop - start] for one in inner]
            else:
                reads = [(reading @ one[:, place])[..., : stop - start] for one in outer]
                reading = chunks.before(reading, place)
            of_keys = reads[0]  # (H, R, C)
            weights = of_keys * _row(beta[here])
            for lag, part in enumerate(of_value):
                shifted((weights * (u @ _columns(part[here]))).sum(0)[:, : end - start] * value_share, lag, out, start)
            if score_share:
                at_learnt = u @ _columns(learnt[here])
                for lag, (of_part, again) in enumerate(zip(reads[1:], unlearnt, strict=True)):
                    found = of_part * at_learnt - weights * (u @ _columns(again[here]))
                    shifted(found.sum(0)[:, : end - start] * score_share, lag, out, start)
                for lag, part in enumerate(of_beta):
                    found = (of_keys * at_learnt * _row(part[here])).sum(0)
                    shifted(found[:, : end - start] * score_share, lag, out, start)
                faded.insert(0, weights * (u @ _columns(value[here])))
        if score_share:
            sums = torch.cat(faded, -1)[..., :end]
            sums = (sums.cumsum(-1) - sums).masked_fill_(torch.arange(end, device=rows.device) > rows[:, None], 0)
            for lag, part in enumerate(of_decay):
                shifted((sums * _row(part[:end])).sum(0) * score_share, lag, out)
            for lag, part in enumerate(of_query):
                on_diagonal((g_query[rows] * part[rows]).flatten(1).sum(-1), rows, lag, out)
        return out

    return edges


def _columns(x: Tensor) -> Tensor:
    """(H, V, C) of (C, H, V)."""
    return x.permute(1, 2, 0)


def _row(x: Tensor) -> Tensor:
    """(H, 1, C) of (C, H)."""
    return x.mT.unsqueeze(1)
