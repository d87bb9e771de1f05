"""The bounded backward pass of attention, the kernels' aside: tiles of little mass are left out (see `bounded`).

A few queries of every tile, drawn by their part in its mass, tell which tiles weigh how much, roughly. Those that seem
to matter are formed, by the C++ core or many of them in one batched product, and their masses with them, exactly: what
is missing from the mass of all is what was left out. While that is more than may be, others follow. Sums are taken in
float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import attention_native
from .attention_tiled import ahead, capped, reached
from .bounded import UNITS, choose

TILE = attention_native.TILE  # queries, and keys, of a tile
_BATCH = 32  # tiles of head_dim 64 in one product: measured, with more of them they leave the cache
_DRAWN = 8  # queries of a tile: measured, they let 2 % more tiles stay than the true masses would, four 4 %, two 8 %
_FEWEST = 4  # tiles of queries in a context that is worth a look
# Of all mass: so much more is said to be left out of 16-bit models. What is told is never less than the truth that way:
# PyTorch's 16-bit forward pass rounds the sums of the weights, by up to 0.8 of this where it was measured.
_ROUNDED = 2.0**-14
_AIM = 0.8  # of the tolerance, at first: tiles that seem lighter than they are go more often than others


def worth(native: bool, queries: int) -> float:
    """Of the tiles, so many at most may stay: with more, to choose them costs more than it saves. 0: that is sure.

    Measured with AVX-512, in units of an exact pass by PyTorch's flash kernel: by the C++ core the choice takes 0.05 to
    0.1, all tiles 0.7 to 0.85 and an exact pass 0.6 to 0.85; in plain PyTorch the choice 0.1 to 0.25 and all tiles 1.6.
    """
    if queries <= 1024:  # few layers leave out enough
        return 0.0
    return 0.7 if native else 0.5


class Grads(NamedTuple):
    """Plain gradients, None of query and key where the weights are constants; and what they were made of."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor
    kept: Tensor  # (H, tiles of queries, tiles of keys) bool
    dropped: float  # share of the mass that lay on the others


def backward(
    g, query, key, value, out, lse, reach, *, sinks: Tensor | None, tolerance: float, scores: bool, ratio: bool
) -> Grads | None:  # fmt: skip
    """As `attention_tiled.backward`, for one row of a batch, (1, H, T, D), less the tiles that the tolerance allows.

    Args:
        sinks: (H,) as `ops.attention` takes them: what they take of the weights has no mass.

    Returns:
        None where the whole pass costs no more, or what it is given is not finite.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    native = attention_native.serves(query, value, reach, wide)
    # In units of the largest: squares of what is below 1e-19 would be 0.
    unit = torch.linalg.vector_norm(g, torch.inf).to(wide)
    norm = torch.linalg.vector_norm(g[0].to(wide) / unit, dim=-1)  # (H, T)
    # Padding behind a prompt carries none: in company it is bounded where it is alone.
    carry = norm.any(0).nonzero()
    pays = worth(native, int(carry[-1]) + 1) if len(carry) else 0.0
    more = _ROUNDED if query.dtype.itemsize == 2 else 0.0
    if not pays or more >= tolerance or int(carry[-1]) // TILE + 1 < _FEWEST or not lse.isfinite().all():
        return None
    weighed = norm if sinks is None else norm * (1 - torch.exp(sinks.to(wide)[:, None] - lse[0]))
    total = weighed.sum(dtype=torch.float64).item()
    guessed = _guessed(norm, query, key, lse, reach, native)
    there = guessed > 0
    most = pays * int(there.sum())  # tiles: as many take as long as a whole pass

    def tiles(kept: Tensor, goal: float) -> Tensor | None:
        """Those to keep, unless a whole pass is quicker than what is not among ``kept`` yet."""
        chosen = choose(guessed, goal)
        return None if chosen is None or (chosen.kept & ~kept).sum() > most else chosen.kept

    kept, goal = torch.zeros_like(there), _AIM * tolerance
    wanted = tiles(kept, goal)
    if wanted is None:
        return None
    sums = (_Native if native else _Blocks)(g, query, key, value, out, lse, norm, reach, scores, ratio)
    while wanted is not None:
        sums.add(wanted & ~kept)
        kept = wanted
        dropped = max(0.0, 1 - sums.mass / total + more) if total else 0.0
        if dropped <= tolerance:
            return Grads(*sums.grads(), kept, dropped)
        # Rounding alone is above so small a tolerance; some tiles weigh too little for any.
        if goal * UNITS < 1 or torch.equal(kept, there):
            return None
        goal *= min(0.7, 0.9 * tolerance / dropped)
        wanted = tiles(kept, goal)
    return None


def _guessed(norm: Tensor, query: Tensor, key: Tensor, lse: Tensor, reach, native: bool) -> Tensor:
    """(H, tiles of queries, tiles of keys) masses, unbiased, by `_DRAWN` queries a tile: as many as there are equal
    parts of its |u_i|, from the middle of each. Above 0 wherever a query with relevance reads a key."""
    (heads, queries), keys, wide = query.shape[1:3], key.shape[2], norm.dtype
    on = {"device": query.device}
    rows, columns = -(-queries // TILE), -(-keys // TILE)
    u = torch.nn.functional.pad(norm, (0, -queries % TILE)).view(heads, rows, TILE).cumsum(-1)
    mass = u[..., -1:].contiguous()
    middles = (torch.arange(_DRAWN, dtype=wide, **on) + 0.5) / _DRAWN * mass
    drawn = torch.searchsorted(u, middles).clamp_(max=TILE - 1) + torch.arange(0, rows * TILE, TILE, **on)[:, None]
    drawn = drawn.clamp_(max=queries - 1)  # (H, rows, _DRAWN)
    if native:
        guessed = attention_native.masses(query[0].to(wide), key[0].to(wide), lse[0].to(wide), drawn, reach)
    else:
        guessed = _weights(query, key, lse, drawn, reach)
    first_of, last_of = (torch.arange(rows, **on) * TILE + (keys - queries), torch.arange(columns, **on) * TILE)
    there = torch.ones(rows, columns, dtype=torch.bool, **on)
    if reach.causal or reach.window is not None:
        there &= last_of < (first_of[:, None] + TILE - 1 + ahead(reach, keys))
    if reach.window is not None:
        there &= last_of + TILE - 1 > first_of[:, None] - reach.window
    guessed = guessed / _DRAWN + there * torch.finfo(wide).eps / columns
    return guessed.mul_(mass)


def _weights(query: Tensor, key: Tensor, lse: Tensor, drawn: Tensor, reach) -> Tensor:
    """(H, tiles of queries, tiles of keys), the sums of the weights of the queries drawn."""
    (heads, queries), keys, wide = query.shape[1:3], key.shape[2], lse.dtype
    on, rows = {"device": query.device}, drawn.shape[1]
    sums = torch.zeros(heads, rows, -(-keys // TILE), dtype=wide, **on)
    of_head = torch.arange(heads, **on)[:, None]
    each = TILE // _DRAWN
    for first in range(0, rows, each):
        here = slice(first, min(first + each, rows))
        index = drawn[:, here].flatten(1)
        q = query[0][of_head, index].to(wide) * reach.scale  # (H, R, D)
        position = index + (keys - queries)
        first_read, last_read = int(position.min()), int(position.max())
        read = reached(first_read, last_read, keys, reach)
        low = read.start // TILE * TILE
        j = torch.arange(low, read.stop, **on)
        for one in range(key.shape[1]):  # a head of keys at a time: what is at work stays in the cache
            own = slice(one * heads // key.shape[1], (one + 1) * heads // key.shape[1])
            s = q[own].flatten(0, 1) @ key[0, one, low : read.stop].to(wide).T
            s, _ = capped(s, reach, None)
            i = position[own].flatten()[:, None]
            s.sub_(lse[0][of_head, index][own].flatten()[:, None]).exp_()
            if reach.causal or reach.window is not None:  # only keys after what the first query reads can be hidden
                far = ahead(reach, keys)
                later = max(0, first_read + far - low)
                s[:, later:].masked_fill_(j[later:] >= i + far, 0)
            if reach.window is not None:
                earlier = max(0, last_read - reach.window + 1 - low)
                s[:, :earlier].masked_fill_(j[:earlier] <= i - reach.window, 0)
            s = torch.nn.functional.pad(s, (0, -len(j) % TILE)).unflatten(-1, (-1, TILE)).sum(-1)
            of_keys = slice(low // TILE, low // TILE + s.shape[-1])
            sums[own, here, of_keys] = s.unflatten(0, (-1, here.stop - first, _DRAWN)).sum(2)
    return sums


class _Native:
    """The gradients of the tiles that have been added, and their mass, by `attention_native`."""

    def __init__(self, g, query, key, value, out, lse, norm, reach, scores: bool, ratio: bool) -> None:
        wide = norm.dtype
        self.like, self.reach, self.norm = (query, key, value), reach, norm
        self.given = [t[0].to(wide) for t in (g, query, key, value, out, lse)]
        self.sums = attention_native.gradients(query[0], key[0], value[0], scores)
        self.mass = 0.0

    def add(self, tiles: Tensor) -> None:
        """Add tiles (H, tiles of queries, tiles of keys) bool."""
        self.mass += attention_native.add(*self.given, self.reach, *self.sums, norm=self.norm, tiles=tiles)

    def grads(self) -> list[Tensor | None]:
        return [None if t is None else t[None].to(like.dtype) for t, like in zip(self.sums, self.like, strict=True)]


class _Blocks:
    """The same in plain PyTorch."""

    def __init__(self, g, query, key, value, out, lse, norm, reach, scores: bool, ratio: bool) -> None:
        wide = norm.dtype
        self.like, self.reach, self.ratio = (query, key, value), reach, ratio if scores else None
        self.q, self.k, self.v, self.u = (blocked(t, wide) for t in (query.to(wide) * reach.scale, key, value, g))
        self.lse = blocked(lse.unsqueeze(-1), wide, torch.inf)  # rows that are not there weigh nothing
        self.norm = blocked(norm[None, ..., None], wide).squeeze(-1)
        self.passed = blocked((g.to(wide) * out.to(wide)).sum(-1, keepdim=True), wide)
        self.dq, self.dk = (torch.zeros_like(t).flatten(1) if scores else None for t in (self.q, self.k))
        self.dv = torch.zeros_like(self.v).flatten(1)
        self.mass = 0.0

    def add(self, tiles: Tensor) -> None:
        """Add tiles (H, tiles of queries, tiles of keys) bool."""
        for a, b, hidden in visits(tiles, *self.like[:2], self.reach):
            q, k, u = self.q.index_select(0, a), self.k.index_select(0, b), self.u.index_select(0, a)
            p, factor = capped(torch.bmm(q, k.mT), self.reach, self.ratio)
            p.sub_(self.lse.index_select(0, a)).exp_()
            if hidden is not None:
                p.masked_fill_(hidden, 0)
            self.mass += p.sum(-1).mul_(self.norm.index_select(0, a)).sum(dtype=torch.float64).item()
            self.dv.index_add_(0, b, torch.bmm(p.mT, u).flatten(1))
            if self.dq is None:
                continue
            ds = torch.bmm(u, self.v.index_select(0, b).mT).sub_(self.passed.index_select(0, a)).mul_(p)
            if factor is not None:
                ds.mul_(factor)
            self.dq.index_add_(0, a, torch.bmm(ds, k).flatten(1))
            self.dk.index_add_(0, b, torch.bmm(ds.mT, q).flatten(1))

    def grads(self) -> list[Tensor | None]:
        dq = None if self.dq is None else self.dq.mul_(self.reach.scale)
        pairs = zip((dq, self.dk, self.dv), self.like, strict=True)
        return [None if x is None else _unblocked(x, like) for x, like in pairs]


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
    behind = row * TILE + (keys - queries) - column * TILE
    cut = column * TILE + TILE > keys
    far = ahead(reach, keys)
    if reach.causal or reach.window is not None:
        cut = cut | (behind < TILE - far)
    if reach.window is not None:
        cut = cut | (behind + TILE > reach.window)
    a, b = head * rows + row, head // (heads // key.shape[1]) * columns + column
    each = max(1, _BATCH * 64 // max(64, query.shape[3]))
    j = torch.arange(TILE, device=kept.device)
    i = j[:, None]
    for whole in (True, False):
        for part in (~cut if whole else cut).nonzero().flatten().split(each):
            hidden = None
            if not whole:
                lag = behind[part, None, None] + (i - j)
                hidden = (column[part] * TILE)[:, None, None] + j >= keys
                if reach.causal or reach.window is not None:
                    hidden = hidden | (lag <= -far)
                if reach.window is not None:
                    hidden = hidden | (lag >= reach.window)
            yield a[part], b[part], hidden


def blocked(x: Tensor, dtype: torch.dtype, filling: float = 0.0) -> Tensor:
    """(1, H, T, D) -> (H x tiles, TILE, D): rows that are not there are ``filling``."""
    x = torch.nn.functional.pad(x[0].to(dtype), (0, 0, 0, -x.shape[2] % TILE), value=filling)
    return x.reshape(-1, TILE, x.shape[-1])


def _unblocked(x: Tensor, like: Tensor) -> Tensor:
    return x.view(1, like.shape[1], -1, like.shape[3])[:, :, : like.shape[2]].to(like.dtype)
