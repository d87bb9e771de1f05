"""Attention in plain PyTorch by tiles of query rows: any device, soft-caps, wide values, chosen rows, chosen keys.

Sums are taken in float32 at least. A tile holds all keys that its rows reach, for every head at once; the query
heads of one key/value head lie side by side in it, so that grouped-query attention copies nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 1 << 21  # scores in one tile; a few of these are alive at a time
_MOST_ROWS = 64  # measured: larger tiles of a 2,048-token context leave the cache


def forward(query: Tensor, key: Tensor, value: Tensor, reach) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, D_v) and lse (B, H, T), float32 at least."""
    wide = torch.promote_types(query.dtype, torch.float32)
    key, value = key.to(wide), value.to(wide)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=wide)
    for rows, keys, position in tiles(query, key, reach, None):
        scores, _ = _scores(side_by_side(query[:, :, rows].to(wide), key), key[:, :, keys], position, keys, reach)
        total = torch.logsumexp(scores, -1, keepdim=True)
        o = scores.sub_(total).exp_() @ value[:, :, keys]
        out[:, :, rows] = o.view(*query.shape[:2], -1, o.shape[-1])
        lse[:, :, rows] = total.view(*query.shape[:2], -1)
    return out, lse


def backward(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    reach,
    *,
    rows: Tensor | None,
    scores: bool,
    ratio: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of query, key and value.

    Args:
        rows: the queries to compute, the others pass nothing; None for all.
        scores: False leaves query and key out (None): the attention weights are constants.
        ratio: soft-caps pass cap(s)/s instead of their derivative.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    dtype, k, v = query.dtype, key.to(wide), value.to(wide)
    dq = torch.zeros(query.shape, dtype=dtype, device=query.device) if scores else None
    dk = torch.zeros(k.shape, dtype=wide, device=k.device) if scores else None
    dv = torch.zeros(v.shape, dtype=wide, device=v.device)
    for tile, keys, position in tiles(query, key, reach, rows):
        q, u = (side_by_side(t[:, :, tile].to(wide), key) for t in (query, g))
        p, factor = _scores(q, k[:, :, keys], position, keys, reach, ratio if scores else None)
        p.sub_(side_by_side(lse[:, :, tile].unsqueeze(-1), key)).exp_()
        dv[:, :, keys] += p.transpose(-1, -2) @ u
        if not scores:
            continue
        passed = side_by_side((g[:, :, tile].to(wide) * out[:, :, tile]).sum(-1, keepdim=True), key)
        ds = (u @ v[:, :, keys].transpose(-1, -2)).sub_(passed).mul_(p)
        if factor is not None:
            ds.mul_(factor)
        dq[:, :, tile] = (ds @ k[:, :, keys]).mul_(reach.scale).view(*query.shape[:2], -1, query.shape[3]).to(dtype)
        dk[:, :, keys] += (ds.transpose(-1, -2) @ q).mul_(reach.scale)
    return dq, dk.to(dtype) if scores else None, dv.to(dtype)


def tiles(query, key, reach, rows):
    """Query rows (slice or indices), the slice of keys that they can reach, and their positions."""
    total, keys = query.shape[2], key.shape[2]
    each = max(1, min(_MOST_ROWS, _TILE // max(1, query.shape[0] * query.shape[1] * keys)))
    for start in range(0, total if rows is None else len(rows), each):
        tile = slice(start, min(start + each, total)) if rows is None else rows[start : start + each]
        index = torch.arange(total, device=query.device)[tile] if rows is None else tile
        position = index + (keys - total)
        yield tile, reached(int(position[0]), int(position[-1]), keys, reach), position


def reached(first: int, last: int, keys: int, reach) -> slice:
    """Which of so many keys the queries from position ``first`` to ``last`` read."""
    low = 0 if reach.window is None else max(0, first - reach.window + 1)
    high = last + ahead(reach, keys) if reach.until is None else int(reach.until[:, first : last + 1].max())
    return slice(low, min(keys, high))


def ahead(reach, keys: int) -> int:
    """How far from its own position on, at most, a query reads keys: the first that it does not is so many away."""
    return 1 if reach.causal else reach.window or keys


def side_by_side(x: Tensor, key: Tensor) -> Tensor:
    """(B, H, R, D) -> (B, H_kv, G R, D): the rows of the G query heads that share a key/value head."""
    return x.unflatten(1, (key.shape[1], -1)).flatten(2, 3)


def _scores(q, k, position, keys, reach, ratio=None):
    """Masked scores (B, H_kv, G R, S), and the soft-cap's backward factor where ``ratio`` asks for one."""
    scores, factor = capped((q @ k.transpose(-1, -2)).mul_(reach.scale), reach, ratio)
    return hide(scores, position, keys, reach), factor


def capped(raw: Tensor, reach, ratio: bool | None) -> tuple[Tensor, Tensor | None]:
    """Scores behind the soft-cap (``raw`` itself without one), and its backward factor, as in `_scores`."""
    if reach.softcap is None:
        return raw, None
    factor = None
    scores = torch.tanh(raw / reach.softcap)
    if ratio is True:
        factor = torch.where(raw == 0, 1.0, scores * reach.softcap / raw)
    elif ratio is False:
        factor = 1 - scores * scores
    return scores.mul_(reach.softcap), factor


# Some of a tile's keys, and which queries do not read which of them: (R, S), or (B, 1 or H_kv, 1, R, S) of a prompt.
Hiding = tuple[slice, Tensor]


def hide(scores: Tensor, position: Tensor, keys: slice, reach) -> Tensor:
    """Set to -inf, in place, what the queries (B, H_kv, G R, S) at these positions do not read of these keys."""
    return cover(scores, hiding(position, keys, reach))


def hiding(position: Tensor, keys: slice, reach) -> list[Hiding]:
    """What `hide` hides."""
    found = []
    j = torch.arange(keys.start, keys.stop, device=position.device)
    i = position[:, None]
    if reach.causal or reach.window is not None:  # only keys after what the first of these rows reads can be hidden
        far = ahead(reach, keys.stop)
        later = max(0, int(position[0]) + far - keys.start)
        beyond = i + far if reach.until is None else reach.until[:, None, None, position, None]
        found.append((slice(later, None), j[later:] >= beyond))
    if reach.window is not None:
        earlier = max(0, int(position[-1]) - reach.window + 1 - keys.start)
        found.append((slice(earlier), j[:earlier] <= i - reach.window))
    if reach.chosen is not None:
        found.append((slice(None), reach.chosen.hides(position, keys).unsqueeze(2)))
    return found


def cover(scores: Tensor, hides: list[Hiding]) -> Tensor:
    """Set to -inf, in place, of scores (B, H_kv, G R, S) what is to be hidden."""
    for keys, mask in hides:
        scores.unflatten(2, (-1, mask.shape[-2]))[..., keys].masked_fill_(mask, -torch.inf)
    return scores
