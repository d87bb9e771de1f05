"""Relevance that positions pass to each other through one attention, in closed form, by tiles of query rows.

What query j passes to position i through the keys and values is, summed over heads,

    A_ji = a_v P_ji <u_j, v~_i> + a_s scale dS_ji <q_j, k~_i>

with u the relevance gradient at the heads' output, behind the stabilisers; P the weights; dS = P (u v^T - <u, o>),
times the soft-cap's factor; a_v and a_s the rule's shares; and k~, v~ what the layer's input contributes to keys and
values.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import edges_native
from .attention import Trace, at_values
from .attention_bounded import TILE, blocked, visits
from .attention_chunks import chunks_of
from .attention_tiled import Hiding, capped, cover, hiding, reached, tiles
from .backend import fused, kernels, table
from .select import Selected, Tile, by_mass, by_row, joined, listed

# Edges that the kernels write at a time, 64 MiB of them; the same memory for all.
_BUFFER = 1 << 24

# Edges of one attention that stay until those that hold a share of the mass are chosen, 64 MiB in float32; what is
# beyond them, from about 5,700 causal queries on, is computed twice.
HELD = 1 << 24


def attention_edges(
    trace: Trace,
    rows: Tensor,
    *,
    key_part: Tensor | None = None,
    value_part: Tensor | None = None,
    topk: int | None = None,
    mass: float | None = None,
    own: Tensor | None = None,
    impl: str = "auto",
) -> Selected:
    """The strongest edges of one attention, chosen exactly; nothing of size T x S is ever held.

    Args:
        trace: what `attention` appended to its ``traces``, of one prompt without padding (`Trace.of`). What a bounded
            backward pass left out has no edges.
        rows: (R,) int64, ascending, the queries to compute.
        key_part, value_part: (1, H_kv, S, D), what the layer's input contributes to keys and values under the rule;
            None where that is key and value themselves (no biases, no stabilised linear maps).
        topk: keep as many edges into each query, of largest |A|, of equal ones those with the lower source.
        mass: keep, over all queries, the smallest set of largest |A| that holds this share of their sum, ties kept.
        own: with ``mass``, (S,) what each position passes to itself past the attention. It counts as part of A_jj.
        impl: as in `activation`. The kernels take head_dim up to 256, in float32 up to 128.

    Raises:
        ValueError: unless just one of ``topk`` and ``mass`` is given; for the trace of several prompts.
    """
    _check_one(trace)
    if (topk is None) == (mass is None):
        raise ValueError("give one of topk= and mass=")
    small = trace.query.shape[-1] * trace.query.element_size() <= 512
    by_kernels = trace.reach.is_plain and fused(trace.query, impl, served=small)
    by = "triton" if by_kernels else "core" if edges_native.serves(trace) else "torch"
    if topk is not None and (by == "core" or (by_kernels and topk <= kernels("edges").MOST)):
        strongest, found = _strongest if by_kernels else edges_native.strongest, []
        for start, *chunk in _chunks(trace, rows, key_part, value_part):
            columns, weights, dropped = strongest(*chunk, topk)
            found.append(listed(columns + start, weights, dropped))
        return joined(found)
    computed, room = partial(attention_tiles, trace, key_part, value_part, by), 0 if by_kernels else HELD
    return by_row(computed(rows), topk) if mass is None else by_mass(computed, rows, mass, own, room, impl)


def _chunks(
    trace: Trace, rows: Tensor, key_part: Tensor | None, value_part: Tensor | None
) -> Iterator[tuple[int, Tensor, Trace, Tensor | None, Tensor | None]]:
    """Where each chunk begins, its queries counted from there, and what of the others is the chunk's; without chunks
    the whole."""
    if trace.chunk is None:
        yield 0, rows, trace, key_part, value_part
        return
    for tokens, own in chunks_of(rows, trace.key.shape[2], trace.chunk):
        parts = (None if part is None else part[:, :, tokens] for part in (key_part, value_part))
        yield tokens.start, own, trace.of(0, tokens.start, tokens.stop)._replace(chunk=None), *parts


def attention_tiles(
    trace: Trace, key_part: Tensor | None, value_part: Tensor | None, by: str, rows: Tensor
) -> Iterator[Tile]:
    """All edges of those queries, by "triton", by the C++ "core" or by "torch"."""
    for start, own, chunk, *parts in _chunks(trace, rows, key_part, value_part):
        if by == "triton":
            found = _fused_tiles(chunk, _prepared(chunk, *parts), own)
        elif by == "core":
            found = edges_native.tiles(chunk, own, *parts)
        else:
            found = (bounded_tiles if chunk.unit == (TILE, TILE) else edge_tiles)(chunk, own, *parts)
        for position, keys, entries in found:
            yield position + start, slice(keys.start + start, keys.stop + start), entries


def _strongest(rows: Tensor, trace: Trace, key_part, value_part, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    return kernels("edges").strongest(_prepared(trace, key_part, value_part), rows, topk, table(trace.query))


def crossing(trace: Trace, key_part: Tensor | None = None, value_part: Tensor | None = None) -> Tensor:
    """(S,) relevance that arrives at every position through its key and value: the column sums of all edges."""
    _check_one(trace)
    dtype = torch.promote_types(trace.value.dtype, torch.float32)
    pairs = [(trace.g_value, trace.value if value_part is None else value_part)]
    if trace.g_key is not None:
        pairs.append((trace.g_key, trace.key if key_part is None else key_part))
    return sum(torch.linalg.vecdot(g.to(dtype), part.to(dtype)).sum((0, 1)) for g, part in pairs)


def _check_one(trace: Trace) -> None:
    if len(trace.g) != 1:
        raise ValueError(f"edges are those of one prompt, and this trace is of {len(trace.g)}: cut one out with .of")


def _prepared(trace: Trace, key_part: Tensor | None, value_part: Tensor | None):
    return kernels("edges").prepare(
        trace.g,
        trace.query,
        trace.key,
        trace.value,
        *trace.kept[:3],
        key_part=key_part,
        value_part=value_part,
        **trace.reach.for_kernels(),
        value_share=trace.rules.treatment.value,
        score_share=trace.rules.treatment.score,
        ratio=trace.rules.treatment.ratio,
        epsilon=trace.rules.attention_epsilon,
        gamma=trace.rules.attention_gamma,
        kept=None if trace.tiles is None else trace.tiles[0][None],
        table=table(trace.query),
    )


def _fused_tiles(trace: Trace, given, rows: Tensor) -> Iterator[Tile]:
    """As `edge_tiles`, by the kernels and in float32; every tile takes the memory of the one before."""
    keys = trace.key.shape[2]
    position = rows + (keys - trace.query.shape[2])
    known = position.tolist()  # once for all tiles: each look would wait for the GPU
    each = max(1, _BUFFER // keys)
    found = torch.empty(min(each, len(rows)) * keys, dtype=torch.float32, device=trace.query.device)
    for start in range(0, len(rows), each):
        end = min(start + each, len(rows))
        reach = reached(known[start], known[end - 1], keys, trace.reach)
        tile = kernels("edges").tile(given, rows[start:end], reach, found, table(trace.query))
        yield position[start:end], reach, tile


@torch.no_grad()  # products go where the last tile's were, which autograd forbids
def edge_tiles(
    trace: Trace, rows: Tensor, key_part: Tensor | None = None, value_part: Tensor | None = None
) -> Iterator[Tile]:
    """Yield positions of some queries (R,), the keys that they reach, and edges (R, S) between: float32 or wider."""
    query, reach = trace.query, trace.reach
    given = _Given.of(trace, key_part, value_part)
    kept = None if trace.tiles is None else partial(_kept, trace.tiles[0], trace.unit)
    room: dict[int, Tensor] = {}
    for tile, keys, position in tiles(query, trace.key, reach, rows):
        if int(tile[-1]) - int(tile[0]) + 1 == len(tile):
            tile = slice(int(tile[0]), int(tile[-1]) + 1)  # to look each row up by itself takes longer
        hides, edges = hiding(position, keys, reach._replace(chosen=None)), None
        # The queries of one head of keys at a time: what is at work stays in the cache.
        for one in range(trace.key.shape[1]):
            if reach.chosen is not None:
                hides = hiding(position, keys, reach._replace(chosen=reach.chosen.of_head(one)))
            own = slice(one * query.shape[1] // trace.key.shape[1], (one + 1) * query.shape[1] // trace.key.shape[1])
            q, u, lse, passed = (t[own, tile].flatten(0, 1) for t in (given.q, given.u, given.lse, given.passed))
            k, v, k_part, v_part = (None if t is None else t[one, keys] for t in given[4:])
            pairs = ((q, k), (u, v), (q, k_part), (u, v_part))
            products = (_product(room, place, *pair) for place, pair in enumerate(pairs))
            hidden, free = partial(_cover, hides=hides), _at_work(room, len(pairs), len(q), len(k), q)
            part = _passed_on(trace, *products, lse, passed, hidden, free)
            part = part.view(-1, len(position), len(k))
            if kept is not None:
                part.mul_(kept(own, position - (trace.key.shape[2] - query.shape[2]), keys))
            edges = part.sum(0) if edges is None else edges.add_(part.sum(0))
        yield position, keys, edges.mul_(trace.rules.treatment.value)


def bounded_tiles(
    trace: Trace, rows: Tensor, key_part: Tensor | None = None, value_part: Tensor | None = None
) -> Iterator[Tile]:
    """As `edge_tiles`, of a bounded backward pass: from the tiles of queries and keys that it did not leave out."""
    query, reach = trace.query, trace.reach
    given = _Given(*(None if t is None else blocked(t[None], t.dtype) for t in _Given.of(trace, key_part, value_part)))
    keys, kept = trace.key.shape[2], trace.tiles[0]
    columns = kept.shape[2]
    for row, wanted in enumerate(torch.bincount(rows // TILE, minlength=kept.shape[1]).tolist()):
        if not wanted:
            continue
        edges = given.q.new_zeros(columns, TILE, TILE)  # by tile of keys
        for a, b, hides in visits(kept[:, row : row + 1], query, trace.key, reach, row):
            q, u, lse, passed = (t.index_select(0, a) for t in given[:4])
            k, v, k_part, v_part = (None if t is None else t.index_select(0, b) for t in given[4:])
            raw, d_p = torch.bmm(q, k.mT), torch.bmm(u, v.mT)
            hidden = partial(_fill, hides=hides)
            through = None if k_part is None else torch.bmm(q, k_part.mT)
            direct = None if v_part is None else torch.bmm(u, v_part.mT)
            part = _passed_on(trace, raw, d_p, through, direct, lse, passed, hidden)
            edges.index_add_(0, b % columns, part)
        of_these = rows[rows // TILE == row]
        position = of_these + (keys - query.shape[2])
        read = reached(int(position[0]), int(position[-1]), keys, reach)
        edges = edges.transpose(0, 1).flatten(1)[of_these - row * TILE, read]
        yield position, read, edges.mul_(trace.rules.treatment.value)


def _kept(tiles: Tensor, unit: tuple[int, int], heads: slice, queries: Tensor, keys: slice) -> Tensor:
    """Which of some heads' queries and keys lie in tiles that stayed."""
    of_keys = torch.arange(keys.start, keys.stop, device=tiles.device) // unit[1]
    return tiles[heads][:, queries // unit[0]][:, :, of_keys]


def _product(room: dict[int, Tensor], place: int, rows: Tensor, columns: Tensor | None) -> Tensor | None:
    """rows columns^T, in one of the places that tiles have in turn: fresh memory would come from beyond the cache."""
    if columns is None:
        return None
    return torch.mm(rows, columns.T, out=_at_work(room, place, len(rows), len(columns), rows))


def _at_work(room: dict[int, Tensor], place: int, rows: int, columns: int, like: Tensor) -> Tensor:
    if place not in room or len(room[place]) < rows * columns:
        room[place] = like.new_empty(rows * columns)
    return room[place][: rows * columns].view(rows, columns)


def _cover(scores: Tensor, hides: list[Hiding]) -> Tensor:
    return cover(scores.view(1, 1, *scores.shape), hides).view(scores.shape)


def _fill(scores: Tensor, hides: Tensor | None) -> Tensor:
    return scores if hides is None else scores.masked_fill_(hides, -torch.inf)


class _Given(NamedTuple):
    """What edges are formed of, in float32 or wider; by heads, and by heads of keys."""

    q: Tensor  # (H, T, D), times the scale
    u: Tensor  # (H, T, D_v)
    lse: Tensor  # (H, T, 1)
    passed: Tensor  # (H, T, 1), <u, o>
    k: Tensor  # (H_kv, S, D)
    v: Tensor  # (H_kv, S, D_v)
    k_part: Tensor | None  # what the layer's input contributes to k and v, where that is not they themselves
    v_part: Tensor | None

    @staticmethod
    def of(trace: Trace, key_part: Tensor | None, value_part: Tensor | None) -> _Given:
        g, out, value = at_values(trace.g, trace.kept.out, trace.value, trace.kept.size, trace.rules)
        if value_part is not None and trace.rules.attention_gamma:
            value_part = torch.cat([value_part, trace.value.sign() * value_part], -1)
        wide = torch.promote_types(trace.query.dtype, torch.float32)
        u = g[0].to(wide)
        passed = (u * out[0].to(wide)).sum(-1, keepdim=True)
        lse = trace.kept.lse[0].to(wide).unsqueeze(-1)
        others = (None if t is None else t[0].to(wide) for t in (trace.key, value, key_part, value_part))
        return _Given(trace.query[0].to(wide) * trace.reach.scale, u, lse, passed, *others)


def _passed_on(trace, raw, d_p, through, direct, lse, passed, hidden, free: Tensor | None = None) -> Tensor:
    """Edges of one head in units of the values' share, of the products q k^T, u v^T and, where the parts are others,
    q k~^T and u v~^T. All of them may be overwritten, and ``free``, which is like them."""
    treatment, reach = trace.rules.treatment, trace.reach
    scores, factor = capped(raw, reach, treatment.ratio if treatment.score else None)
    edges = d_p if direct is None else direct
    if treatment.score:
        d_s = torch.sub(d_p, passed, out=free)
        if factor is not None:
            d_s.mul_(factor)
        edges.addcmul_(d_s, raw if through is None else through, value=treatment.score / treatment.value)
    return edges.mul_(hidden(scores.sub_(lse)).exp_())
