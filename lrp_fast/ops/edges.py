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

import torch
from torch import Tensor

from .attention import Trace, at_values
from .attention_tiled import capped, hide, reached, side_by_side, tiles
from .backend import fused, kernels, table
from .select import Selected, Tile, by_mass, by_row, listed

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
        trace: what `attention` appended to its ``traces``, of one prompt without padding (`Trace.of`).
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
    if fused(trace.query, impl, served=trace.query.shape[-1] * trace.query.element_size() <= 512):
        given = _prepared(trace, key_part, value_part)
        if topk is not None and topk <= kernels("edges").MOST:
            return listed(*kernels("edges").strongest(given, rows, topk, table(trace.query)))
        computed, room = partial(_fused_tiles, trace, given), 0
    else:
        computed, room = partial(edge_tiles, trace, key_part=key_part, value_part=value_part), HELD
    return by_row(computed(rows), topk) if mass is None else by_mass(computed, rows, mass, own, room, impl)


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
        *trace.kept,
        key_part=key_part,
        value_part=value_part,
        **trace.reach._asdict(),
        value_share=trace.rules.treatment.value,
        score_share=trace.rules.treatment.score,
        ratio=trace.rules.treatment.ratio,
        epsilon=trace.rules.attention_epsilon,
        gamma=trace.rules.attention_gamma,
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


def edge_tiles(
    trace: Trace, rows: Tensor, key_part: Tensor | None = None, value_part: Tensor | None = None
) -> Iterator[Tile]:
    """Yield positions of some queries (R,), the keys that they reach, and edges (R, S) between: float32 or wider."""
    query, reach, treatment = trace.query, trace.reach, trace.rules.treatment
    g, out, value = at_values(trace.g, trace.kept.out, trace.value, trace.kept.size, trace.rules)
    if value_part is not None and trace.rules.attention_gamma:
        value_part = torch.cat([value_part, trace.value.sign() * value_part], -1)
    wide = torch.promote_types(query.dtype, torch.float32)
    key, value, key_part, value_part = (
        None if t is None else t.to(wide).transpose(-1, -2) for t in (trace.key, value, key_part, value_part)
    )
    for tile, keys, position in tiles(query, trace.key, reach, rows):
        q, u = (side_by_side(t[:, :, tile].to(wide), trace.key) for t in (query, g))
        raw = (q * reach.scale) @ key[..., keys]
        scores, factor = capped(raw, reach, treatment.ratio if treatment.score else None)
        lse = side_by_side(trace.kept.lse[:, :, tile].unsqueeze(-1), trace.key)
        p = hide(scores - lse, position, keys, reach).exp_()
        d_p = u @ value[..., keys]
        edges = d_p if value_part is None else u @ value_part[..., keys]
        if treatment.score:
            passed = (g[:, :, tile].to(wide) * out[:, :, tile]).sum(-1, keepdim=True)
            d_s = d_p - side_by_side(passed, trace.key)
            if factor is not None:
                d_s.mul_(factor)
            through = raw if key_part is None else (q * reach.scale) @ key_part[..., keys]
            edges.addcmul_(d_s, through, value=treatment.score / treatment.value)
        edges = edges.mul_(p).view(-1, len(position), p.shape[-1]).sum(0)
        yield position, keys, edges.mul_(treatment.value)
