"""Relevance that positions pass to each other through one attention, in closed form: tiles of it, or each row's best.

What query j passes to position i is, summed over heads,

    A_ji = P_ji [a_v <u_j, v~_i> + a_s scale (<u_j, v_i> - <u_j, o_j>) f_ji <q_j, k~_i>]

with u the relevance gradient at the heads' output behind the stabilisers, f the soft-cap's factor, a_v and a_s the
rule's shares, and k~, v~ what the layer's input contributes to keys and values: these themselves unless given.

Rows of heads may have 512 bytes: float32 at head_dim 256, with all that gamma needs, would take more shared memory
than sm_89 has.

A program owns a tile of listed queries and keys and adds up the heads in registers. The keys and values of a group of
heads are loaded once for all of them, and the mask is applied once, to the sum: what a query does not read may come out
as anything before. Nothing of size T x S exists, and nothing is summed by atomics: the same call gives the same bits.

Per head and pair of query and key: 2 products of head_dim terms (q k and u v), as many as the forward pass, 4 with k~
and v~ (cp: u v~ in place of u v), 1 more where gamma meets |V|, 2 with v~ then; and one exponential. A tile reads, a
head, BLOCK_M rows of q and u, and its share of the group's BLOCK_N rows of k and v: that is 2 x 2 BLOCK_M BLOCK_N
operations for 2 BLOCK_M + 2 BLOCK_N / G elements, so that wide tiles of keys read less.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import _flags, _launch, _score_scalars, block_d, config, key_tiles, load_tile, prepare_kernel, scores
from .common import Case, launch, record, strides
from .tiles import TABLE, Table

MOST = 64  # edges of a row that `strongest` keeps at most: they lie in registers

# Keys that one program looks through for the strongest: few rows then still make many programs, and those that run
# together share their queries in the cache.
_SEGMENT = 4096
_LISTED = 2**23  # candidates in memory at a time, 8 bytes each, of all segments

_MOST_KEYS = 2**31 - 1  # what a column is counted down from in a candidate


# ---- Kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def add_head(b_a, b_k, b_v, b_abs, b_k_part, b_v_part, b_v_more, q, u, more, lse, passed, i_h, b_t, queries,
             stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud, qk_scale, cap_scale, through_scale,
             SOFTCAP: tl.constexpr, SCORES: tl.constexpr, RATIO: tl.constexpr, GAMMA: tl.constexpr,
             K_PART: tl.constexpr, V_PART: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """What head i_h adds to the tile of edges b_a (BLOCK_M, BLOCK_N), in units of the values' share."""
    i_h = tl.cast(i_h, tl.int64)
    # (BLOCK_M, BLOCK_D)
    b_q = load_tile(q + i_h * stride_qh, b_t, stride_qt, stride_qd, 0, 0, HEAD_DIM, BLOCK_D, False)
    # (BLOCK_M, BLOCK_N)
    b_qk = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    b_s, b_factor = scores(b_qk, b_t[:, None], b_t[:, None], 0, 0, 0, qk_scale, cap_scale, False, False, SOFTCAP,
                           RATIO, False)  # fmt: skip
    b_lse = tl.load(lse + i_h * queries + b_t)
    b_p = tl.exp2(b_s - b_lse[:, None] * 1.4426950408889634)
    b_u = load_tile(u + i_h * stride_uh, b_t, stride_ut, stride_ud, 0, 0, HEAD_DIM, BLOCK_D, False)
    b_more = b_u
    if GAMMA:
        b_more = load_tile(more + i_h * stride_uh, b_t, stride_ut, stride_ud, 0, 0, HEAD_DIM, BLOCK_D, False)
    b_e = tl.dot(b_u, tl.trans(b_v_part), input_precision="ieee")
    if GAMMA:
        b_e = tl.dot(b_more, tl.trans(b_v_more), b_e, input_precision="ieee")
    if SCORES:
        b_ds = b_e
        if V_PART:
            b_ds = tl.dot(b_u, tl.trans(b_v), input_precision="ieee")
            if GAMMA:
                b_ds = tl.dot(b_more, tl.trans(b_abs), b_ds, input_precision="ieee")
        b_passed = tl.load(passed + i_h * queries + b_t)
        b_ds = b_ds - b_passed[:, None]
        if SOFTCAP:
            b_ds = b_ds * b_factor
        if K_PART:
            b_qk = tl.dot(b_q, tl.trans(b_k_part), input_precision="ieee")
        b_e += b_ds * (b_qk * through_scale)
    return b_a + b_p * b_e


@triton.jit
def edge_tile(q, u, more, k, v, k_part, v_part, lse, passed, b_t, o_j, end, queries, keys, kv_heads, groups, window,
              stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
              stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
              stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
              qk_scale, cap_scale, through_scale, value_share, GROUPED: tl.constexpr,
              CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
              RATIO: tl.constexpr, GAMMA: tl.constexpr, K_PART: tl.constexpr, V_PART: tl.constexpr,
              HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Edges (BLOCK_M, BLOCK_N) from queries b_t to keys o_j, 0 where a query does not read a key and from end on."""
    b_a = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    o_real = tl.minimum(o_j, keys - 1)  # the others come out as 0 below: no load needs a mask for them
    for i_kv in range(0, kv_heads):
        i_kv = tl.cast(i_kv, tl.int64)
        # (BLOCK_N, BLOCK_D)
        b_k = load_tile(k + i_kv * stride_kh, o_real, stride_ks, stride_kd, 0, 0, HEAD_DIM, BLOCK_D, False)
        b_v = load_tile(v + i_kv * stride_vh, o_real, stride_vs, stride_vd, 0, 0, HEAD_DIM, BLOCK_D, False)
        b_k_part = b_k
        if K_PART:
            b_k_part = load_tile(k_part + i_kv * stride_kph, o_real, stride_kps, stride_kpd, 0, 0, HEAD_DIM, BLOCK_D,
                                 False)  # fmt: skip
        b_v_part = b_v
        if V_PART:
            b_v_part = load_tile(v_part + i_kv * stride_vph, o_real, stride_vps, stride_vpd, 0, 0, HEAD_DIM, BLOCK_D,
                                 False)  # fmt: skip
        b_abs = b_v
        b_v_more = b_v
        if GAMMA:  # |V|, and what the input contributes to it
            b_abs = tl.abs(b_v)
            b_v_more = b_abs
            if V_PART:
                b_v_more = tl.where(b_v > 0.0, b_v_part, tl.where(b_v < 0.0, -b_v_part, 0.0)).to(b_v.dtype)
        if GROUPED:
            for i_g in range(0, groups):
                b_a = add_head(
                    b_a, b_k, b_v, b_abs, b_k_part, b_v_part, b_v_more, q, u, more, lse, passed, i_kv * groups + i_g,
                    b_t, queries, stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
                    qk_scale, cap_scale, through_scale,
                    SOFTCAP, SCORES, RATIO, GAMMA, K_PART, V_PART, HEAD_DIM, BLOCK_D,
                )  # fmt: skip
        else:  # without a loop of its own, so that the loads above are pipelined
            b_a = add_head(
                b_a, b_k, b_v, b_abs, b_k_part, b_v_part, b_v_more, q, u, more, lse, passed, i_kv, b_t, queries,
                stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud, qk_scale, cap_scale, through_scale,
                SOFTCAP, SCORES, RATIO, GAMMA, K_PART, V_PART, HEAD_DIM, BLOCK_D,
            )  # fmt: skip
    o_i = (b_t + (keys - queries))[:, None]
    m = (o_j < end)[None, :] & (o_i >= 0)
    if CAUSAL:
        m = m & (o_j[None, :] <= o_i)
    if WINDOW:
        m = m & (o_j[None, :] > o_i - window)
    return tl.where(m, b_a * value_share, 0.0)


@triton.jit(do_not_specialize=["count", "queries", "keys", "kv_heads", "groups", "blocks", "low", "end", "window"])
def tile_kernel(
    q, u, more, k, v, k_part, v_part, lse, passed, rows, found,
    stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
    stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
    stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
    count, queries, keys, kv_heads, groups, blocks, low, end, window, qk_scale, cap_scale, through_scale, value_share,
    GROUPED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
    RATIO: tl.constexpr, GAMMA: tl.constexpr, K_PART: tl.constexpr, V_PART: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """found (count, end - low): edges from the listed queries to keys low ... end - 1, one tile a program."""
    i_pid = tl.program_id(0)
    o_r = (i_pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_j = low + (i_pid // blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_t = tl.load(rows + tl.minimum(o_r, count - 1)).to(tl.int32)
    b_a = edge_tile(
        q, u, more, k, v, k_part, v_part, lse, passed, b_t, o_j, end, queries, keys, kv_heads, groups, window,
        stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
        stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
        stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
        qk_scale, cap_scale, through_scale, value_share, GROUPED, CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA,
        K_PART, V_PART, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    p_found = found + o_r[:, None].to(tl.int64) * (end - low) + (o_j - low)[None, :]
    tl.store(p_found, b_a, mask=(o_r < count)[:, None] & (o_j < end)[None, :])


@triton.jit
def candidates(b_a, o_j):
    """Edges as integers, larger for stronger ones, and of equal ones for those further to the left: 31 bits of |A|, 31
    of the column's complement, and the sign. No two of a row are equal. Below all, -2^62, is what is 0."""
    b_bits = tl.abs(b_a).to(tl.int32, bitcast=True).to(tl.int64)
    b_key = (b_bits << 32) | ((2147483647 - o_j).to(tl.int64) << 1)[None, :] | (b_a < 0.0).to(tl.int64)
    return tl.where(b_bits == 0, -4611686018427387904, b_key)


@triton.jit
def magnitude(b_key):
    """|A| of candidates, 0 of what is negative."""
    return (tl.maximum(b_key, 0) >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(
    do_not_specialize=["count", "queries", "keys", "kv_heads", "groups", "segments", "segment", "kept", "window"]
)
def strongest_kernel(
    q, u, more, k, v, k_part, v_part, lse, passed, rows, listed, dropped,
    stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
    stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
    stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
    count, queries, keys, kv_heads, groups, segments, segment, kept, window,
    qk_scale, cap_scale, through_scale, value_share,
    GROUPED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
    RATIO: tl.constexpr, GAMMA: tl.constexpr, K_PART: tl.constexpr, V_PART: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """listed (count, segments, kept): the strongest of the ``segment`` key tiles of each segment, in no order; dropped
    (count, segments, 2): what the others of them add up to, positive and negative."""
    i_pid = tl.program_id(0)
    i_s = i_pid % segments
    # The last queries read the most keys: they start first.
    i_m = tl.num_programs(0) // segments - 1 - i_pid // segments
    o_r = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    b_t = tl.load(rows + tl.minimum(o_r, count - 1)).to(tl.int32)
    lo, hi, _, _ = key_tiles(
        tl.maximum(tl.min(b_t, 0), queries - keys), tl.max(b_t, 0) + 1, keys - queries, 0, keys, window, CAUSAL,
        WINDOW, BLOCK_N,
    )  # fmt: skip

    o_k = tl.arange(0, BLOCK_K)
    # Empty places are distinct, so that one is filled at a time; and those past what is kept never the least.
    b_empty = tl.where(o_k < kept, -1 - o_k.to(tl.int64), 9223372036854775807)
    b_best = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.int64) + b_empty[None, :]
    b_least = tl.min(b_best, 1)
    b_plus = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_minus = tl.zeros([BLOCK_M], dtype=tl.float32)
    for i_n in range(tl.maximum(lo, i_s * segment), tl.minimum(hi, i_s * segment + segment)):
        o_j = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        b_a = edge_tile(
            q, u, more, k, v, k_part, v_part, lse, passed, b_t, o_j, keys, queries, keys, kv_heads, groups, window,
            stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
            stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
            stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
            qk_scale, cap_scale, through_scale, value_share, GROUPED, CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA,
            K_PART, V_PART, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        b_key = candidates(b_a, o_j)
        # Each round takes every row's strongest that is left, if it is stronger than the weakest of the row's list.
        b_top = tl.max(b_key, 1)
        while tl.max((b_top > b_least).to(tl.int32), 0) > 0:
            m_in = b_top > b_least
            b_out = tl.where(m_in, magnitude(b_least), 0.0)
            b_plus += tl.where((b_least & 1) == 0, b_out, 0.0)
            b_minus -= tl.where((b_least & 1) == 0, 0.0, b_out)
            b_best = tl.where(m_in[:, None] & (b_best == b_least[:, None]), b_top[:, None], b_best)
            b_least = tl.min(b_best, 1)
            b_next = tl.max(tl.where(b_key < b_top[:, None], b_key, -4611686018427387904), 1)
            b_top = tl.where(m_in, b_next, b_top)
        b_rest = tl.where(b_key <= b_top[:, None], b_a, 0.0)
        b_plus += tl.sum(tl.maximum(b_rest, 0.0), 1)
        b_minus += tl.sum(tl.minimum(b_rest, 0.0), 1)

    o_s = o_r.to(tl.int64) * segments + i_s
    m_r = o_r < count
    tl.store(listed + o_s[:, None] * kept + o_k[None, :], b_best, mask=m_r[:, None] & (o_k < kept)[None, :])
    tl.store(dropped + o_s * 2, b_plus, mask=m_r)
    tl.store(dropped + o_s * 2 + 1, b_minus, mask=m_r)


# ---- Launchers ------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """One backward pass through an attention of one prompt, as the edge kernels read it. See `prepare`."""

    query: Tensor  # (1, H, T, D), any strides
    key: Tensor
    value: Tensor
    u: Tensor  # (1, H, T, D), or two of them
    lse: Tensor  # (1, H, T) float32
    passed: Tensor | None  # (1, H, T) float32 <u, o>; None where weights are constants
    key_part: Tensor | None  # (1, H_kv, S, D)
    value_part: Tensor | None
    scalars: tuple[int, float, float, float, float]
    flags: dict[str, bool]


def prepare(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    absolute_out: Tensor | None,
    *,
    key_part: Tensor | None,
    value_part: Tensor | None,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    value_share: float,
    score_share: float,
    ratio: bool,
    epsilon: float = 0.0,
    gamma: float = 0.0,
) -> Pass:
    """What both launchers take: the gradient behind the stabilisers, and the arguments in the kernels' form.

    Args:
        g, query, key, value, out, lse, absolute_out: as `attention.backward` takes them, of a batch of 1 without
            bounds.
        key_part, value_part: (1, H_kv, S, D), what the layer's input contributes to keys and values, rounded to their
            dtype; None where that is key and value themselves. key_part counts if ``score_share`` is not 0.
        value_share, score_share: not 0; of the values, and of the keys.
    """
    _, heads, queries, head_dim = query.shape
    scored, gammaed = score_share != 0, gamma != 0
    u, passed, lse = g, None, lse.contiguous()
    written = bool(epsilon or gammaed or g.dtype != query.dtype)
    if written or scored:
        if written:
            u = torch.empty((1 + gammaed, *query.shape[1:]), dtype=query.dtype, device=query.device)
        passed = torch.empty_like(lse) if scored else None
        if absolute_out is not None and absolute_out.stride() != out.stride():
            as_out = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
            absolute_out = as_out.copy_(absolute_out)
        tiles = triton.cdiv(queries, _PREPARED)
        active = torch.empty(heads, tiles, dtype=torch.int32, device=query.device)  # nobody reads it
        launch(
            prepare_kernel, tiles * heads,
            g, out, absolute_out, u if written else None, passed, active, None, *strides(g, out),
            queries, key.shape[2], heads, tiles, u[0].numel(), float(epsilon), float(gamma),
            STABILISED=bool(epsilon or gammaed), GAMMA=gammaed, SCORES=scored, WRITE_U=written, BOUNDS=False,
            HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), BLOCK_M=_PREPARED,
        )  # fmt: skip
    key_part = None if key_part is None or not scored else key_part.to(key.dtype)
    value_part = None if value_part is None else value_part.to(value.dtype)
    scalars = (
        *_score_scalars(key, scale, window, softcap), float(score_share / value_share * scale), float(value_share)
    )  # fmt: skip
    flags = _flags(key, causal, window, softcap, None)
    del flags["BOUNDS"]
    flags |= {"SCORES": scored, "RATIO": ratio, "GAMMA": gammaed}
    flags |= {"K_PART": key_part is not None, "V_PART": value_part is not None}
    return Pass(query, key, value, u, lse, passed, key_part, value_part, scalars, flags)


_PREPARED = 32  # queries that a program of prepare_kernel looks at


def tile(given: Pass, rows: Tensor, keys: slice, found: Tensor, table: Table = TABLE) -> Tensor:
    """Edges from queries ``rows`` (R,) int64 to ``keys``, (R, S), 0 where a query does not read a key.

    They lie in ``found``, float32, of R x S elements at least: the next call may write there again.
    """
    found = found[: len(rows) * (keys.stop - keys.start)].view(len(rows), -1)
    tiles, tensors, steps, sizes, forms = _arguments(given, table)
    blocks = triton.cdiv(len(rows), tiles.queries)
    launch(
        tile_kernel, blocks * triton.cdiv(found.shape[1], tiles.keys),
        *tensors, rows, found, *steps, len(rows), *sizes, blocks, keys.start, keys.stop, *given.scalars,
        **forms, **_launch(tiles),
    )  # fmt: skip
    return found


def strongest(given: Pass, rows: Tensor, k: int, table: Table = TABLE) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` edges of largest magnitude from each of the queries ``rows`` (R,) int64, exactly.

    Of equal ones those to the lower keys; zeros are never chosen.

    Args:
        k: 1 ... MOST.

    Returns:
        columns (R, k) int32, ascending, the largest int32 where a row has fewer; weights (R, k) float32, there 0; and
        (R, 2), the sums of the positive and of the negative edges that were left out.
    """
    tiles, tensors, steps, sizes, forms = _arguments(given, table)
    segment = triton.cdiv(_SEGMENT, tiles.keys)
    segments = triton.cdiv(given.key.shape[2], segment * tiles.keys)
    found = []
    for part in rows.split(max(1, _LISTED // (segments * k * tiles.queries)) * tiles.queries):
        listed = torch.empty(len(part), segments, k, dtype=torch.int64, device=rows.device)
        dropped = torch.empty(len(part), segments, 2, dtype=torch.float32, device=rows.device)
        launch(
            strongest_kernel, triton.cdiv(len(part), tiles.queries) * segments,
            *tensors, part, listed, dropped, *steps, len(part), *sizes, segments, segment, k, *given.scalars,
            **forms, BLOCK_K=max(2, triton.next_power_of_2(k)), **_launch(tiles),
        )  # fmt: skip
        found.append(_merged(listed.flatten(1), dropped, k))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _merged(listed: Tensor, dropped: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `strongest` returns, of the candidates (R, L) and the dropped sums (R, segments, 2) of all segments."""
    listed = listed.sort(descending=True).values
    listed = torch.where(listed < 0, -1, listed)
    weights = (listed.clamp(min=0) >> 32).int().view(torch.float32)
    weights = torch.where(listed & 1 == 0, weights, -weights).masked_fill_(listed < 0, 0)
    rest = weights[:, k:]
    dropped = dropped.sum(1) + torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
    columns = (_MOST_KEYS - (listed[:, :k] >> 1 & _MOST_KEYS)).masked_fill_(listed[:, :k] < 0, _MOST_KEYS)
    columns, order = columns.sort(-1)
    return columns.int(), weights[:, :k].gather(1, order), dropped


def _arguments(given: Pass, table: Table):
    """Tiles; then in the kernels' order tensors, their strides, queries, keys, kv_heads and groups; and constants."""
    query, key, value, key_part, value_part, u = *given[:3], given.key_part, given.value_part, given.u[:1]
    head_dim, flags = query.shape[-1], given.flags
    step = "edges parts" if flags["K_PART"] or flags["V_PART"] or flags["GAMMA"] else "edges"
    tiles = config(step, query, False, False, table)
    more = given.u[1] if flags["GAMMA"] else None
    tensors = (query, u, more, key, value, key_part, value_part, given.lse, given.passed)
    steps = [x.stride()[1:] if x is not None else (0, 0, 0) for x in (query, u, key, value, key_part, value_part)]
    groups = query.shape[1] // key.shape[1]
    sizes = (query.shape[2], key.shape[2], key.shape[1], groups)
    forms = flags | {"GROUPED": groups > 1, "HEAD_DIM": head_dim, "BLOCK_D": block_d(head_dim)}
    return tiles, tensors, [one for three in steps for one in three], sizes, forms


# ---- For the compile gate -------------------------------------------------------------------------------------------


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    """Every row of tiles.json that is for edges, in the forms that need most, and as many edges as may be kept."""
    calls = {}
    for dim in (64, 80, 128, 256):
        for dtype in (torch.bfloat16, torch.float32) if dim in (64, 128) else (torch.bfloat16,):
            for form in ("plain", "cp", "parts", "all flags") if dim != 80 else ("plain",):
                name = f"{dim}-{str(dtype)[6:]}-{form}".replace(" ", "-")
                calls[name] = lambda dim=dim, dtype=dtype, form=form: _both(dim, dtype, form)
    calls["128-float16-plain"] = lambda: _both(128, torch.float16, "plain")
    calls["64-bfloat16-single"] = lambda: _both(64, torch.bfloat16, "plain", groups=1)
    cases = record(calls, on)
    return [(f"{case[0]}-{case[1].fn.__name__}", *case[1:]) for case in cases if case[1] is not prepare_kernel]


def _both(dim, dtype, form, groups=4):
    """A tile and lists of edges of a prompt that has no memory."""
    meta = {"dtype": dtype, "device": "meta"}
    query, key = (torch.empty(1, 4096, heads, dim, **meta).transpose(1, 2) for heads in (32, 32 // groups))
    full = form == "all flags"
    part = key if full or form == "parts" else None
    given = prepare(
        query, query, key, key, query, torch.empty(1, 32, 4096, device="meta"), query if full else None,
        key_part=part, value_part=part,
        scale=0.1, causal=True, window=1024 if full else None, softcap=30.0 if full else None,
        value_share=0.5, score_share=0.0 if form == "cp" else 0.25, ratio=True, gamma=0.1 * full,
    )  # fmt: skip
    rows = torch.empty(4096, dtype=torch.int64, device="meta")
    strongest(given, rows, MOST if full else 16)
    tile(given, rows, slice(0, 4096), torch.empty(2**24, device="meta"))
