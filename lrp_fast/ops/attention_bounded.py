"""The bounded backward pass of attention in plain PyTorch: tiles of little mass are left out (see `bounded`).

One product q k^T gives every tile's mass; the others, and that one again, are formed for the tiles that stay, many of
them in one batched product. Sums are taken in float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .attention_tiled import capped, hide, reached
from .bounded import SAMPLED, choose, kept_share, worth

TILE = 64  # queries, and keys, of a tile
_BATCH = 32  # tiles of head_dim 64 in one product: measured, with more of them they leave the cache
_FEWEST = 4  # tiles of queries in a context that is worth a look


class Grads(NamedTuple):
    """Plain gradients, None of query and key where the weights are constants; and what they were made of."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor
    kept: Tensor  # (H, tiles of queries, tiles of keys) bool
    dropped: float  # share of the mass that lay on the others


def backward(g, query, key, value, out, lse, reach, *, tolerance: float, scores: bool, ratio: bool) -> Grads | None:
    """As `attention_tiled.backward`, for one row of a batch, (1, H, T, D), less the tiles that the tolerance allows.

    Returns:
        None where the whole pass costs no more, or what it is given is not finite.
    """
    if -(-query.shape[2] // TILE) < _FEWEST:
        return None
    masses = _masses(g, query, key, lse, reach, tolerance, worth(scores))
    chosen = None if masses is None else choose(masses, tolerance)
    if chosen is None or chosen.kept.sum() > worth(scores) * (masses > 0).sum():
        return None
    return Grads(*_gradients(chosen.kept, g, query, key, value, out, lse, reach, scores, ratio), *chosen)


def _masses(g, query, key, lse, reach, tolerance: float, most: float) -> Tensor | None:
    """(H, tiles of queries, tiles of keys); None if a look at some of them shows that too many would stay."""
    heads, queries = query.shape[1:3]
    rows, columns = (-(-t.shape[2] // TILE) for t in (query, key))
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k = query[0].to(wide) * reach.scale, key[0].to(wide)
    weight = torch.linalg.vector_norm(g[0], dim=-1, dtype=wide).log_().sub_(lse[0])  # (H, T)
    masses = torch.zeros(heads, rows, columns, dtype=wide)
    order = [*range(SAMPLED // 2, rows, SAMPLED)]
    sampled = len(order)
    order += [row for row in range(rows) if row not in set(order)]
    for done, row in enumerate(order):
        if done == sampled and kept_share(masses[:, order[:sampled]], tolerance) > most:
            return None
        part = slice(row * TILE, min(row * TILE + TILE, queries))
        position = torch.arange(part.start, part.stop) + (key.shape[2] - queries)
        keys = _whole_tiles(reached(int(position[0]), int(position[-1]), key.shape[2], reach), key.shape[2])
        for one in range(key.shape[1]):  # a head of keys at a time: what is at work stays in the cache
            own = slice(one * heads // key.shape[1], (one + 1) * heads // key.shape[1])
            s = torch.mm(q[own, part].flatten(0, 1), k[one, keys].t())
            s, _ = capped(s, reach, None)
            s = hide(s.view(1, 1, *s.shape), position, keys, reach).view(-1, len(position), s.shape[-1])
            s = s.add_(weight[own, part, None]).exp_().sum(1)
            s = torch.nn.functional.pad(s, (0, -s.shape[-1] % TILE)).unflatten(-1, (-1, TILE))
            first = keys.start // TILE
            torch.sum(s, -1, out=masses[own, row, first : first + s.shape[1]])
    return masses


def _whole_tiles(keys: slice, count: int) -> slice:
    return slice(keys.start // TILE * TILE, min(-(-keys.stop // TILE) * TILE, count))


def _gradients(kept, g, query, key, value, out, lse, reach, scores: bool, ratio: bool):
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v, u = (blocked(t, wide) for t in (query.to(wide) * reach.scale, key, value, g))
    lse = blocked(lse.unsqueeze(-1), wide, torch.inf)  # rows that are not there weigh nothing
    passed = blocked((g.to(wide) * out.to(wide)).sum(-1, keepdim=True), wide)
    dq, dk = (torch.zeros_like(t).flatten(1) if scores else None for t in (q, k))
    dv = torch.zeros_like(v).flatten(1)
    for a, b, hidden in visits(kept, query, key, reach):
        q_a, k_b, u_a = q.index_select(0, a), k.index_select(0, b), u.index_select(0, a)
        p, factor = capped(torch.bmm(q_a, k_b.mT), reach, ratio if scores else None)
        p.sub_(lse.index_select(0, a)).exp_()
        if hidden is not None:
            p.masked_fill_(hidden, 0)
        dv.index_add_(0, b, torch.bmm(p.mT, u_a).flatten(1))
        if not scores:
            continue
        ds = torch.bmm(u_a, v.index_select(0, b).mT).sub_(passed.index_select(0, a)).mul_(p)
        if factor is not None:
            ds.mul_(factor)
        dq.index_add_(0, a, torch.bmm(ds, k_b).flatten(1))
        dk.index_add_(0, b, torch.bmm(ds.mT, q_a).flatten(1))
    if scores:
        dq.mul_(reach.scale)
    return [None if x is None else _unblocked(x, like) for x, like in ((dq, query), (dk, key), (dv, value))]


def visits(
    kept: Tensor, query: Tensor, key: Tensor, reach, first: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Some tiles that stay at a time: which tiles of queries and of keys, (n,) in `blocked`, and what is hidden between
    them, (n, M, N) bool or None.

    Args:
        kept: (H, rows, tiles of keys) bool, of the tiles of queries from ``first`` on.
    """
    (heads, queries), keys = query.shape[1:3], key.shape[2]
    rows, columns = -(-queries // TILE), kept.shape[2]
    head, row, column = kept.nonzero().unbind(1)
    row = row + first
    # How far the first query lies behind the first key, and what a tile has to do with the edges of what is read.
    ahead = row * TILE + (keys - queries) - column * TILE
    cut = column * TILE + TILE > keys
    if reach.causal:
        cut = cut | (ahead < TILE - 1)
    if reach.window is not None:
        cut = cut | (ahead + TILE > reach.window)
    a, b = head * rows + row, head // (heads // key.shape[1]) * columns + column
    each = max(1, _BATCH * 64 // max(64, query.shape[3]))
    i, j = torch.arange(TILE)[:, None], torch.arange(TILE)
    for whole in (True, False):
        for part in (~cut if whole else cut).nonzero().flatten().split(each):
            hidden = None
            if not whole:
                lag = ahead[part, None, None] + (i - j)
                hidden = (column[part] * TILE)[:, None, None] + j >= keys
                if reach.causal:
                    hidden = hidden | (lag < 0)
                if reach.window is not None:
                    hidden = hidden | (lag >= reach.window)
            yield a[part], b[part], hidden


def blocked(x: Tensor, dtype: torch.dtype, filling: float = 0.0) -> Tensor:
    """(1, H, T, D) -> (H x tiles, TILE, D): rows that are not there are ``filling``."""
    x = torch.nn.functional.pad(x[0].to(dtype), (0, 0, 0, -x.shape[2] % TILE), value=filling)
    return x.reshape(-1, TILE, x.shape[-1])


def _unblocked(x: Tensor, like: Tensor) -> Tensor:
    return x.view(1, like.shape[1], -1, like.shape[3])[:, :, : like.shape[2]].to(like.dtype)
