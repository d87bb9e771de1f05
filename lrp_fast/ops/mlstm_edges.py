"""Edges of xLSTM's matrix memory in closed form.

Under a rule, what the output is divided by is a constant b_j, and so is m_j, which cancels: o_j = sum_{t <= j} W_jt v_t
with W_jt = q_j . k_t exp(F_j - F_t + i_t - m_j) / b_j, q over the root of K, F the running sum of log sigmoid(f). With
w_jt = W_jt <u_j, v_t>, u_j being the relevance gradient at the output, row j passes

    to the values     W_jt <u_j, v~_t>
    to the keys       q_j . k~_t exp(...) / b_j <u_j, v_t>
    to what is taken  i~_t w_jt
    to what is kept   f~_t sigmoid(-f_t) sum_{s < t} w_js, all that has faded at t
    to the queries    <g_q,j, q~_j>

each times the rule's share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .mixing import on_diagonal, shifted


def mlstm_edges(
    g: Tensor, given: tuple[Tensor, ...], back: tuple, parts: tuple, *, eps: float, value_share: float,
    score_share: float,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """A `mixed` form. ``given``: value (T, H, V), query, key (T, H, K), take, keep (T, H); as `mlstm`, but for the
    order of its dimensions."""
    wide = torch.promote_types(g.dtype, torch.float32)
    value, query, key, take, keep = (one.to(wide) for one in given)
    of_value, of_query, of_key, of_take, of_keep = (None if one is None else one.to(wide) for one in parts)
    query = query * query.shape[-1] ** -0.5
    faded = F.logsigmoid(keep.double()).cumsum(0)  # of thousands of tokens: their differences are what counts
    most = faded + (take.double() - faded).cummax(0).values.clamp(min=0)

    def edges(rows: Tensor) -> Tensor:
        end = int(rows[-1]) + 1
        later = torch.arange(end, device=rows.device) > rows.unsqueeze(-1)
        out = g.new_zeros(len(rows), end, dtype=wide)
        for head in range(g.shape[1]):
            u, q = g[rows, head].to(wide), query[rows, head]
            left = (faded[rows, head] - most[rows, head]).unsqueeze(-1) + (take.double() - faded)[:end, head]
            left = left.masked_fill(later, -torch.inf).exp().to(wide)
            weights = q @ key[:end, head].mT * left
            by = torch.maximum(weights.sum(-1).abs(), (-most[rows, head]).exp().to(wide)).unsqueeze(-1) + eps
            weights, left = weights / by, left / by
            for lag, part in enumerate(of_value):
                shifted(weights * (u @ part[:end, head].mT) * value_share, lag, out)
            if not score_share:
                continue
            read = u @ value[:end, head].mT
            heard = weights * read
            before = heard.cumsum(-1) - heard
            kept = before.masked_fill(later, 0) * torch.sigmoid(-keep[:end, head])
            for lag, (key_part, take_part, keep_part) in enumerate(zip(of_key, of_take, of_keep, strict=True)):
                found = q @ key_part[:end, head].mT * left * read
                found += heard * take_part[:end, head] + kept * keep_part[:end, head]
                shifted(found * score_share, lag, out)
        for lag, part in enumerate(of_query if score_share else ()):
            on_diagonal((back[1][rows].to(wide) * part[rows]).flatten(1).sum(-1), rows, lag, out)
        return out

    return edges
