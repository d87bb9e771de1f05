"""Softmax attention under the propagation rules: forward, and a backward that hands relevance gradients down.

Shapes: query (B, H, T, D), key and value (B, H_kv, S, D), any strides; query t sits at position S - T + t. Nothing of
size T x S exists. Every result is summed in one fixed order, without atomics: the same call gives the same bits.

The forward pass is the online softmax. The backward pass is four launches:

1. ``prepare_kernel``: what the rule makes of the incoming gradient, its product with the output, and which query
   tiles carry relevance at all;
2. ``compact_kernel``: the list of those query tiles, head by head, so that the others are never looked at again;
3. ``dkv_kernel``: a program owns a tile of keys and walks the listed query tiles of all heads that share them;
4. ``dq_kernel``: a program owns a tile of queries and walks the keys (left out where weights are constants).

Tiles of the mask that are wholly open take no mask arithmetic; tiles that are wholly closed are not visited.

Names: ``p_`` pointer, ``b_`` block in registers, ``o_`` offsets, ``i_`` index, ``m_`` mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import DTYPES, Case, capability, launch, record, strides
from .tiles import TABLE, Table, find

_LOG2_E = 1.4426950408889634


# ---- Pieces that several kernels share ------------------------------------------------------------------------------


@triton.jit
def load_tile(p, o_row, stride_row, stride_d, first, end, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
              MASKED: tl.constexpr):  # fmt: skip
    """Rows ``o_row``, (rows, BLOCK_D): 0, and not read, past HEAD_DIM and (if MASKED) outside first ... end - 1."""
    o_d = tl.arange(0, BLOCK_D)
    # 64 bits before the product: row x stride passes 2^31 at long contexts.
    p_tile = p + o_row[:, None].to(tl.int64) * stride_row + o_d[None, :].to(tl.int64) * stride_d
    if MASKED and HEAD_DIM < BLOCK_D:
        b = tl.load(p_tile, mask=((o_row >= first) & (o_row < end))[:, None] & (o_d < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        b = tl.load(p_tile, mask=((o_row >= first) & (o_row < end))[:, None], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        b = tl.load(p_tile, mask=(o_d < HEAD_DIM)[None, :], other=0.0)
    else:
        b = tl.load(p_tile)
    return b


@triton.jit
def store_tile(p, b, o_row, stride_row, stride_d, end, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    o_d = tl.arange(0, BLOCK_D)
    p_tile = p + o_row[:, None].to(tl.int64) * stride_row + o_d[None, :].to(tl.int64) * stride_d
    tl.store(p_tile, b.to(p.dtype.element_ty), mask=(o_row < end)[:, None] & (o_d < HEAD_DIM)[None, :])


@triton.jit
def real_span(bounds, i_b, queries, keys, BOUNDS: tl.constexpr):
    """Of batch row i_b: real keys first ... end - 1, real queries t_first ... t_end - 1."""
    first = 0
    end = keys
    t_first = 0
    t_end = queries
    if BOUNDS:
        first = tl.maximum(tl.load(bounds + i_b * 2).to(tl.int32), 0)
        end = tl.minimum(tl.load(bounds + i_b * 2 + 1).to(tl.int32), keys)
        t_first = tl.maximum(first - (keys - queries), 0)
        t_end = tl.minimum(end - (keys - queries), queries)
    return first, end, t_first, t_end


@triton.jit
def clamp_tiles(lo, hi, full_lo, full_hi):
    """0 <= lo <= full_lo <= full_hi <= hi, whatever came in."""
    hi = tl.maximum(hi, lo)
    full_lo = tl.minimum(tl.maximum(full_lo, lo), hi)
    full_hi = tl.maximum(tl.minimum(full_hi, hi), full_lo)
    return lo, hi, full_lo, full_hi


@triton.jit
def key_tiles(t_lo, t_hi, offset, first, end, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
              BLOCK_N: tl.constexpr):  # fmt: skip
    """For queries t_lo ... t_hi - 1: key tiles lo ... hi - 1 that any of them reads; all of them read the whole of the
    tiles full_lo ... full_hi - 1."""
    lo = first
    hi = end
    full_lo = first
    full_hi = end
    if CAUSAL:
        hi = tl.minimum(hi, t_hi + offset)
        full_hi = tl.minimum(full_hi, t_lo + offset + 1)
    if WINDOW:
        lo = tl.maximum(lo, t_lo + offset - window + 1)
        full_lo = tl.maximum(full_lo, t_hi + offset - window)
    hi = tl.where(t_lo < t_hi, hi, 0)
    # Nothing below zero is divided: hardware truncates where Python floors.
    return clamp_tiles(
        lo // BLOCK_N,
        tl.cdiv(tl.maximum(hi, 0), BLOCK_N),
        tl.cdiv(full_lo, BLOCK_N),
        tl.maximum(full_hi, 0) // BLOCK_N,
    )


@triton.jit
def query_tiles(j_lo, j_hi, offset, first, end, t_first, t_end, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
                BLOCK_M: tl.constexpr):  # fmt: skip
    """As `key_tiles`, for keys j_lo ... j_hi - 1: the query tiles that read any of them, and all of them."""
    lo = t_first
    hi = t_end
    full_lo = t_first
    full_hi = t_end
    if CAUSAL:
        lo = tl.maximum(lo, j_lo - offset)
        full_lo = tl.maximum(full_lo, j_hi - 1 - offset)
    if WINDOW:
        hi = tl.minimum(hi, j_hi - 1 + window - offset)
        full_hi = tl.minimum(full_hi, j_lo + window - offset)
    hi = tl.where((j_lo < end) & (j_hi > first), hi, 0)
    full_hi = tl.where((j_lo >= first) & (j_hi <= end), full_hi, 0)
    return clamp_tiles(
        lo // BLOCK_M,
        tl.cdiv(tl.maximum(hi, 0), BLOCK_M),
        tl.cdiv(full_lo, BLOCK_M),
        tl.maximum(full_hi, 0) // BLOCK_M,
    )


@triton.jit
def cap_ratio(b_x):
    """tanh(x) / x, to a few units in the last place everywhere: a quotient of 1 - e near 0 would cancel."""
    b_y = b_x * b_x
    b_near = 0.021869488536155203 - b_y * 0.008863235529902196
    b_near = 1.0 - b_y * (0.3333333333333333 - b_y * (0.13333333333333333 - b_y * (0.05396825396825397 - b_y * b_near)))
    b_a = tl.maximum(tl.abs(b_x), 0.1)
    b_e = tl.exp2(-2.8853900817779268 * b_a)
    return tl.where(b_y < 0.09, b_near, (1.0 - b_e) / ((1.0 + b_e) * b_a))


@triton.jit
def scores(b_qk, o_i, o_j, first, end, window, qk_scale, cap_scale, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
           SOFTCAP: tl.constexpr, RATIO: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Scores in units of log 2, of q k products ``b_qk`` at positions o_i x o_j; and what the soft-cap, if any, passes
    back: cap(s)/s if RATIO, its derivative otherwise. (Formed here, so that b_qk need not be kept for it.)"""
    b_s = b_qk * qk_scale
    b_factor = b_s
    if SOFTCAP:
        b_factor = cap_ratio(b_qk * cap_scale)
        b_s = b_s * b_factor
        if not RATIO:
            b_tanh = b_qk * cap_scale * b_factor
            b_factor = 1.0 - b_tanh * b_tanh
    if MASKED:
        m = (o_j >= first) & (o_j < end)
        if CAUSAL:
            m = m & (o_j <= o_i)
        if WINDOW:
            m = m & (o_j > o_i - window)
        b_s = tl.where(m, b_s, float("-inf"))
    return b_s, b_factor


@triton.jit
def score_gradient(b_p, b_dp, b_passed, b_factor, SOFTCAP: tl.constexpr):
    """P (dP - D), through the soft-cap."""
    b_ds = b_p * (b_dp - b_passed)
    if SOFTCAP:
        b_ds = b_ds * b_factor
    return b_ds


@triton.jit
def load_lse(p_lse, o_t, first, end):
    """lse in units of log 2, +inf where a row reads nothing or is not there: its weights exp2(s - lse) are then 0."""
    b_lse = tl.load(p_lse + o_t, mask=(o_t >= first) & (o_t < end), other=float("inf"))
    return tl.where(b_lse == float("-inf"), float("inf"), b_lse) * 1.4426950408889634


# ---- Forward --------------------------------------------------------------------------------------------------------


@triton.jit
def attend(b_acc, b_abs, b_max, b_sum, b_q, k, v, o_i, start, count, jump_at, jump, first, end, window,
           stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
           CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ABSOLUTE: tl.constexpr,
           HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """``count`` key tiles from ``start`` on; after ``jump_at`` of them ``jump`` tiles are left out (if MASKED)."""
    for it in range(0, count):
        i_n = start + it
        if MASKED:
            i_n += tl.where(it >= jump_at, jump, 0)
        o_j = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        b_k = load_tile(k, o_j, stride_ks, stride_kd, first, end, HEAD_DIM, BLOCK_D, MASKED)
        # (BLOCK_M, BLOCK_N)
        b_qk = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_s, _ = scores(b_qk, o_i[:, None], o_j[None, :], first, end, window, qk_scale, cap_scale, CAUSAL, WINDOW,
                        SOFTCAP, True, MASKED)  # fmt: skip
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_rescale = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_rescale + tl.sum(b_p, 1)
        b_max = b_new
        b_v = load_tile(v, o_j, stride_vs, stride_vd, first, end, HEAD_DIM, BLOCK_D, MASKED)
        b_p = b_p.to(b_v.dtype)
        b_acc = tl.dot(b_p, b_v, b_acc * b_rescale[:, None], input_precision="ieee")
        if ABSOLUTE:
            b_abs = tl.dot(b_p, tl.abs(b_v), b_abs * b_rescale[:, None], input_precision="ieee")
    return b_acc, b_abs, b_max, b_sum


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "window"])
def forward_kernel(
    q, k, v, o, a, lse, sinks, bounds,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ob, stride_oh, stride_ot, stride_od,
    queries, keys, heads, groups, tiles, window, qk_scale, cap_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, BOUNDS: tl.constexpr,
    ABSOLUTE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """o, lse (and a = P |V|, strided as o) of one tile of BLOCK_M queries of one head."""
    i_pid = tl.program_id(0)
    # The last tiles see the most keys: they start first, and the short ones fill the gaps at the end. Tiles of one
    # head are neighbours, so that they find its keys in the cache.
    i_t = tiles - 1 - i_pid % tiles
    i_bh = i_pid // tiles
    i_b = (i_bh // heads).to(tl.int64)
    i_h = i_bh % heads
    i_kv = (i_h // groups).to(tl.int64)
    q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh
    o += i_b * stride_ob + i_h.to(tl.int64) * stride_oh
    k += i_b * stride_kb + i_kv * stride_kh
    v += i_b * stride_vb + i_kv * stride_vh

    offset = keys - queries
    first, end, t_first, t_end = real_span(bounds, i_b, queries, keys, BOUNDS)
    o_t = i_t * BLOCK_M + tl.arange(0, BLOCK_M)
    o_i = o_t + offset
    lo, hi, full_lo, full_hi = key_tiles(
        tl.maximum(i_t * BLOCK_M, t_first), tl.minimum(i_t * BLOCK_M + BLOCK_M, t_end),
        offset, first, end, window, CAUSAL, WINDOW, BLOCK_N,
    )  # fmt: skip

    # (BLOCK_M, BLOCK_D)
    b_q = load_tile(q, o_t, stride_qt, stride_qd, t_first, t_end, HEAD_DIM, BLOCK_D, True)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    b_abs = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    # Finite: -inf would make NaN of a row's first tiles where all of their keys are hidden.
    b_max = tl.full([BLOCK_M], -1.0e30, dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    if SINKS:  # a logit that no value belongs to
        b_sink = tl.load(sinks + i_h).to(tl.float32) * 1.4426950408889634
        b_max = tl.maximum(b_max, b_sink)
        b_sum = tl.exp2(b_sink - b_max)
    b_acc, b_abs, b_max, b_sum = attend(
        b_acc, b_abs, b_max, b_sum, b_q, k, v, o_i, full_lo, full_hi - full_lo, 0, 0, first, end, window,
        stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, ABSOLUTE, HEAD_DIM, BLOCK_D, BLOCK_N, False,
    )  # fmt: skip
    b_acc, b_abs, b_max, b_sum = attend(
        b_acc, b_abs, b_max, b_sum, b_q, k, v, o_i, lo, (full_lo - lo) + (hi - full_hi), full_lo - lo,
        full_hi - full_lo, first, end, window,
        stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, ABSOLUTE, HEAD_DIM, BLOCK_D, BLOCK_N, True,
    )  # fmt: skip

    m_real = (o_t >= t_first) & (o_t < t_end)
    b_scale = tl.where(m_real & (b_sum > 0), 1.0 / tl.where(b_sum > 0, b_sum, 1.0), 0.0)
    store_tile(o, b_acc * b_scale[:, None], o_t, stride_ot, stride_od, queries, HEAD_DIM, BLOCK_D)
    if ABSOLUTE:
        a += i_b * stride_ob + i_h.to(tl.int64) * stride_oh
        store_tile(a, b_abs * b_scale[:, None], o_t, stride_ot, stride_od, queries, HEAD_DIM, BLOCK_D)
    b_lse = (b_max + tl.log2(tl.where(b_sum > 0, b_sum, 1.0))) * 0.6931471805599453
    b_lse = tl.where(m_real & (b_sum > 0), b_lse, float("-inf"))
    tl.store(lse + i_bh.to(tl.int64) * queries + o_t, b_lse, mask=o_t < queries)


# ---- Backward -------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["queries", "keys", "heads", "tiles"])
def prepare_kernel(
    g, o, a, u, passed, active, bounds,
    stride_gb, stride_gh, stride_gt, stride_gd,
    stride_ob, stride_oh, stride_ot, stride_od,
    queries, keys, heads, tiles, size, epsilon, gamma,
    STABILISED: tl.constexpr, GAMMA: tl.constexpr, SCORES: tl.constexpr, WRITE_U: tl.constexpr, BOUNDS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """u (B, H, T, D), what the stabilisers make of g (with GAMMA a second one follows, ``size`` elements on: the part
    that meets |V|); passed (B, H, T) = <u, o>, and active (B H, tiles) int32: whether a tile of rows has any u != 0."""
    i_pid = tl.program_id(0)
    i_t = i_pid % tiles
    i_bh = i_pid // tiles
    i_b = (i_bh // heads).to(tl.int64)
    i_h = (i_bh % heads).to(tl.int64)
    first, end, t_first, t_end = real_span(bounds, i_b, queries, keys, BOUNDS)
    o_t = i_t * BLOCK_M + tl.arange(0, BLOCK_M)

    # (BLOCK_M, BLOCK_D)
    g += i_b * stride_gb + i_h * stride_gh
    b_u = load_tile(g, o_t, stride_gt, stride_gd, t_first, t_end, HEAD_DIM, BLOCK_D, True)
    b_more = b_u
    if STABILISED or SCORES:
        o += i_b * stride_ob + i_h * stride_oh
        b_o = load_tile(o, o_t, stride_ot, stride_od, t_first, t_end, HEAD_DIM, BLOCK_D, True).to(tl.float32)
        b_a = b_o
        if GAMMA:
            a += i_b * stride_ob + i_h * stride_oh
            b_a = load_tile(a, o_t, stride_ot, stride_od, t_first, t_end, HEAD_DIM, BLOCK_D, True).to(tl.float32)
        if STABILISED:
            b_size = tl.abs(b_o)
            if GAMMA:
                b_size = (1.0 + 0.5 * gamma) * b_size + 0.5 * gamma * b_a
            b_size = b_size + epsilon
            # sigma s; an output that nothing contributes to passes nothing on
            b_ts = b_u.to(tl.float32) * b_o / tl.where(b_size == 0.0, 1.0, b_size)
            b_u = tl.where(b_o < 0.0, -b_ts, b_ts)
            if GAMMA:
                b_u = (1.0 + 0.5 * gamma) * b_u
                b_more = (0.5 * gamma * b_ts).to(u.dtype.element_ty)
        if WRITE_U:
            b_u = b_u.to(u.dtype.element_ty)
        if SCORES:
            # of the rounded u, which the products dP are made of too
            b_passed = tl.sum(b_u.to(tl.float32) * b_o, 1)
            if GAMMA:
                b_passed += tl.sum(b_more.to(tl.float32) * b_a, 1)
            tl.store(passed + i_bh.to(tl.int64) * queries + o_t, b_passed, mask=o_t < queries)
    if WRITE_U:
        u += i_bh.to(tl.int64) * queries * HEAD_DIM
        store_tile(u, b_u, o_t, HEAD_DIM, 1, queries, HEAD_DIM, BLOCK_D)
        if GAMMA:
            store_tile(u + size, b_more, o_t, HEAD_DIM, 1, queries, HEAD_DIM, BLOCK_D)
    b_any = b_u != 0.0
    if GAMMA:
        b_any = b_any | (b_more != 0.0)
    tl.store(active + i_bh.to(tl.int64) * tiles + i_t, tl.max(tl.max(b_any.to(tl.int32), 1), 0))


@triton.jit(do_not_specialize=["tiles"])
def compact_kernel(active, listed, rank, tiles, BLOCK: tl.constexpr):
    """Of one head: listed (B H, tiles), its active tiles in order; rank (B H, tiles + 1), how many come before each."""
    i_bh = tl.program_id(0).to(tl.int64)
    active += i_bh * tiles
    listed += i_bh * tiles
    rank += i_bh * (tiles + 1)
    total = 0
    for start in range(0, tiles, BLOCK):
        o_m = start + tl.arange(0, BLOCK)
        b_active = tl.load(active + o_m, mask=o_m < tiles, other=0)
        b_rank = total + tl.cumsum(b_active, 0) - b_active
        tl.store(rank + o_m, b_rank, mask=o_m < tiles)
        tl.store(listed + b_rank, o_m, mask=b_active != 0)
        total += tl.sum(b_active, 0)
    tl.store(rank + tiles, total)


@triton.jit
def collect(b_dk, b_dv, b_more, b_k, b_v, q, u, u_more, p_lse, p_passed, p_listed, o_j, start, count, jump_at, jump,
            offset, first, end, t_first, t_end, window,
            stride_qt, stride_qd, stride_ut, stride_ud, qk_scale, cap_scale,
            CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
            RATIO: tl.constexpr, GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
            BLOCK_M: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """What ``count`` listed query tiles, from number ``start`` on, add to dK, dV; jumping as `attend` does."""
    for it in range(0, count):
        i_list = start + it
        if MASKED:
            i_list += tl.where(it >= jump_at, jump, 0)
        o_t = tl.load(p_listed + i_list) * BLOCK_M + tl.arange(0, BLOCK_M)
        # (BLOCK_M, BLOCK_D)
        b_q = load_tile(q, o_t, stride_qt, stride_qd, t_first, t_end, HEAD_DIM, BLOCK_D, MASKED)
        b_lse = load_lse(p_lse, o_t, t_first, t_end)
        # (BLOCK_N, BLOCK_M): transposed, so that the sums over queries take it as it is
        b_qk = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")
        b_s, b_factor = scores(b_qk, (o_t + offset)[None, :], o_j[:, None], first, end, window, qk_scale, cap_scale,
                              CAUSAL, WINDOW, SOFTCAP, RATIO, MASKED)  # fmt: skip
        b_p = tl.exp2(b_s - b_lse[None, :])
        b_u = load_tile(u, o_t, stride_ut, stride_ud, t_first, t_end, HEAD_DIM, BLOCK_D, MASKED)
        b_dv = tl.dot(b_p.to(b_u.dtype), b_u, b_dv, input_precision="ieee")
        if SCORES:
            b_dp = tl.dot(b_v, tl.trans(b_u), input_precision="ieee")
        if GAMMA:
            b_u = load_tile(u_more, o_t, HEAD_DIM, 1, t_first, t_end, HEAD_DIM, BLOCK_D, MASKED)
            b_more = tl.dot(b_p.to(b_u.dtype), b_u, b_more, input_precision="ieee")
            if SCORES:
                b_dp = tl.dot(tl.abs(b_v), tl.trans(b_u), b_dp, input_precision="ieee")
        if SCORES:
            b_passed = tl.load(p_passed + o_t, mask=(o_t >= t_first) & (o_t < t_end), other=0.0)
            b_ds = score_gradient(b_p, b_dp, b_passed[None, :], b_factor, SOFTCAP)
            b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")
    return b_dk, b_dv, b_more


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "query_tile_count", "window"])
def dkv_kernel(
    q, k, v, u, dk, dv, lse, passed, listed, rank, bounds,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ub, stride_uh, stride_ut, stride_ud,
    stride_dkb, stride_dkh, stride_dks, stride_dkd,
    stride_dvb, stride_dvh, stride_dvs, stride_dvd,
    queries, keys, heads, groups, tiles, query_tile_count, size, window, qk_scale, cap_scale, dk_scale, dv_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDS: tl.constexpr, SCORES: tl.constexpr,
    RATIO: tl.constexpr, GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dV, and with SCORES dK, of one tile of BLOCK_N keys: summed over the query heads that share them."""
    i_pid = tl.program_id(0)
    i_n = i_pid % tiles  # the first tiles are seen by the most queries, and start first
    kv_heads = heads // groups
    i_b = (i_pid // tiles // kv_heads).to(tl.int64)
    i_kv = i_pid // tiles % kv_heads
    k += i_b * stride_kb + i_kv.to(tl.int64) * stride_kh
    v += i_b * stride_vb + i_kv.to(tl.int64) * stride_vh
    dv += i_b * stride_dvb + i_kv.to(tl.int64) * stride_dvh

    offset = keys - queries
    first, end, t_first, t_end = real_span(bounds, i_b, queries, keys, BOUNDS)
    o_j = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    lo, hi, full_lo, full_hi = query_tiles(
        i_n * BLOCK_N, i_n * BLOCK_N + BLOCK_N, offset, first, end, t_first, t_end, window, CAUSAL, WINDOW, BLOCK_M
    )

    # (BLOCK_N, BLOCK_D)
    b_k = load_tile(k, o_j, stride_ks, stride_kd, first, end, HEAD_DIM, BLOCK_D, True)
    b_v = b_k
    if SCORES or GAMMA:
        b_v = load_tile(v, o_j, stride_vs, stride_vd, first, end, HEAD_DIM, BLOCK_D, True)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    b_more = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i_g in range(0, groups):
        i_h = tl.cast(i_kv * groups + i_g, tl.int64)
        i_bh = i_b * heads + i_h
        p_q = q + i_b * stride_qb + i_h * stride_qh
        p_u = u + i_b * stride_ub + i_h * stride_uh
        p_rank = rank + i_bh * (query_tile_count + 1)
        p_listed = listed + i_bh * query_tile_count
        p_lse = lse + i_bh * queries
        p_passed = p_lse
        if SCORES:
            p_passed = passed + i_bh * queries
        r_lo = tl.load(p_rank + lo)
        r_hi = tl.load(p_rank + hi)
        r_full_lo = tl.load(p_rank + full_lo)
        r_full_hi = tl.load(p_rank + full_hi)
        b_dk, b_dv, b_more = collect(
            b_dk, b_dv, b_more, b_k, b_v, p_q, p_u, p_u + size, p_lse, p_passed, p_listed, o_j,
            r_full_lo, r_full_hi - r_full_lo, 0, 0, offset, first, end, t_first, t_end, window,
            stride_qt, stride_qd, stride_ut, stride_ud, qk_scale, cap_scale,
            CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_M, False,
        )  # fmt: skip
        b_dk, b_dv, b_more = collect(
            b_dk, b_dv, b_more, b_k, b_v, p_q, p_u, p_u + size, p_lse, p_passed, p_listed, o_j,
            r_lo, (r_full_lo - r_lo) + (r_hi - r_full_hi), r_full_lo - r_lo, r_full_hi - r_full_lo,
            offset, first, end, t_first, t_end, window,
            stride_qt, stride_qd, stride_ut, stride_ud, qk_scale, cap_scale,
            CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_M, True,
        )  # fmt: skip

    if GAMMA:
        b_sign = tl.where(b_v > 0.0, 1.0, tl.where(b_v < 0.0, -1.0, 0.0))
        b_dv += b_sign * b_more
    store_tile(dv, b_dv * dv_scale, o_j, stride_dvs, stride_dvd, keys, HEAD_DIM, BLOCK_D)
    if SCORES:
        dk += i_b * stride_dkb + i_kv.to(tl.int64) * stride_dkh
        store_tile(dk, b_dk * dk_scale, o_j, stride_dks, stride_dkd, keys, HEAD_DIM, BLOCK_D)


@triton.jit
def return_to_queries(b_dq, b_q, b_u, b_more, b_lse, b_passed, k, v, o_i, start, count, jump_at, jump,
                      first, end, window, stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
                      CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, RATIO: tl.constexpr,
                      GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
                      MASKED: tl.constexpr):  # fmt: skip
    """What ``count`` key tiles add to dQ; as `attend`."""
    for it in range(0, count):
        i_n = start + it
        if MASKED:
            i_n += tl.where(it >= jump_at, jump, 0)
        o_j = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        b_k = load_tile(k, o_j, stride_ks, stride_kd, first, end, HEAD_DIM, BLOCK_D, MASKED)
        # (BLOCK_M, BLOCK_N)
        b_qk = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_s, b_factor = scores(b_qk, o_i[:, None], o_j[None, :], first, end, window, qk_scale, cap_scale,
                              CAUSAL, WINDOW, SOFTCAP, RATIO, MASKED)  # fmt: skip
        b_p = tl.exp2(b_s - b_lse[:, None])
        b_v = load_tile(v, o_j, stride_vs, stride_vd, first, end, HEAD_DIM, BLOCK_D, MASKED)
        b_dp = tl.dot(b_u, tl.trans(b_v), input_precision="ieee")
        if GAMMA:
            b_dp = tl.dot(b_more, tl.trans(tl.abs(b_v)), b_dp, input_precision="ieee")
        b_ds = score_gradient(b_p, b_dp, b_passed[:, None], b_factor, SOFTCAP)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    return b_dq


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "query_tile_count", "window"])
def dq_kernel(
    q, k, v, u, dq, lse, passed, rank, bounds,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ub, stride_uh, stride_ut, stride_ud,
    stride_dqb, stride_dqh, stride_dqt, stride_dqd,
    queries, keys, heads, groups, tiles, query_tile_count, size, window, qk_scale, cap_scale, dq_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDS: tl.constexpr, RATIO: tl.constexpr,
    GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    LISTED_M: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of BLOCK_M queries of one head; ``rank`` counts tiles of LISTED_M rows."""
    i_pid = tl.program_id(0)
    i_t = tiles - 1 - i_pid % tiles
    i_bh = i_pid // tiles
    i_b = (i_bh // heads).to(tl.int64)
    i_h = i_bh % heads
    i_kv = (i_h // groups).to(tl.int64)
    q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh
    u += i_b * stride_ub + i_h.to(tl.int64) * stride_uh
    dq += i_b * stride_dqb + i_h.to(tl.int64) * stride_dqh
    k += i_b * stride_kb + i_kv * stride_kh
    v += i_b * stride_vb + i_kv * stride_vh
    lse += i_bh.to(tl.int64) * queries
    passed += i_bh.to(tl.int64) * queries
    rank += i_bh.to(tl.int64) * (query_tile_count + 1)

    offset = keys - queries
    first, end, t_first, t_end = real_span(bounds, i_b, queries, keys, BOUNDS)
    before = tl.load(rank + i_t * BLOCK_M // LISTED_M)
    after = tl.load(rank + tl.minimum(tl.cdiv(i_t * BLOCK_M + BLOCK_M, LISTED_M), query_tile_count))
    # A tile that overlaps none with relevance has no rows to compute: it reads nothing and stores zeros.
    t_end = tl.where(after > before, t_end, 0)
    o_t = i_t * BLOCK_M + tl.arange(0, BLOCK_M)
    lo, hi, full_lo, full_hi = key_tiles(
        tl.maximum(i_t * BLOCK_M, t_first), tl.minimum(i_t * BLOCK_M + BLOCK_M, t_end),
        offset, first, end, window, CAUSAL, WINDOW, BLOCK_N,
    )  # fmt: skip

    # (BLOCK_M, BLOCK_D)
    b_q = load_tile(q, o_t, stride_qt, stride_qd, t_first, t_end, HEAD_DIM, BLOCK_D, True)
    b_u = load_tile(u, o_t, stride_ut, stride_ud, t_first, t_end, HEAD_DIM, BLOCK_D, True)
    b_more = b_u
    if GAMMA:
        b_more = load_tile(u + size, o_t, stride_ut, stride_ud, t_first, t_end, HEAD_DIM, BLOCK_D, True)
    b_lse = load_lse(lse, o_t, t_first, t_end)
    b_passed = tl.load(passed + o_t, mask=(o_t >= t_first) & (o_t < t_end), other=0.0)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    b_dq = return_to_queries(
        b_dq, b_q, b_u, b_more, b_lse, b_passed, k, v, o_t + offset, full_lo, full_hi - full_lo, 0, 0,
        first, end, window, stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_N, False,
    )  # fmt: skip
    b_dq = return_to_queries(
        b_dq, b_q, b_u, b_more, b_lse, b_passed, k, v, o_t + offset, lo, (full_lo - lo) + (hi - full_hi),
        full_lo - lo, full_hi - full_lo,
        first, end, window, stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_N, True,
    )  # fmt: skip
    store_tile(dq, b_dq * dq_scale, o_t, stride_dqt, stride_dqd, queries, HEAD_DIM, BLOCK_D)


# ---- Tile configurations --------------------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """Queries and keys in a tile, and how the program that owns it is compiled."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def config(step: str, query: Tensor, gamma: bool, capped: bool, table: Table = TABLE) -> Tiles:
    """Tiles of ``step`` ("forward", "dkv" or "dq") on the device of ``query``.

    Args:
        gamma: with |V| beside V, which takes a second set of sums.
        capped: with a soft-cap, whose factor takes registers too; only some steps have rows of their own for it.

    Raises:
        ValueError: for a head_dim above 256, or an element of neither 2 nor 4 bytes.
    """
    head_dim, itemsize = query.shape[-1], query.element_size()
    name = row(step + " gamma" * gamma, head_dim, itemsize)
    if capped and not gamma and row(step + " capped", head_dim, itemsize) in table:
        name = row(step + " capped", head_dim, itemsize)
    if name not in table:
        raise ValueError(f"no attention kernel for head_dim {head_dim} with elements of {itemsize} bytes")
    return Tiles(*find(table, name, capability(query)))


def row(step: str, head_dim: int, itemsize: int) -> str:
    """The table's name for ``step``, with " gamma" or " capped" after it, and elements of ``itemsize`` bytes."""
    return f"{step}, head_dim {block_d(head_dim)}, {itemsize} bytes"


def block_d(head_dim: int) -> int:
    """Columns of a tile: tensor cores take powers of two, and 64 of them at least are no slower than fewer."""
    return max(64, triton.next_power_of_2(head_dim))


# ---- Launchers ------------------------------------------------------------------------------------------------------


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
    bounds: Tensor | None = None,
    absolute: bool = False,
    table: Table = TABLE,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention's output, its lse, and P |V| if ``absolute``.

    Args:
        query: (B, H, T, D), any strides. key, value: (B, H_kv, S, D).
        window: query i reads keys i - window + 1 ... i. softcap: scores become softcap * tanh(score / softcap).
        sinks: (H,), one more logit a head in the denominator, which lse includes.
        bounds: (B, 2) integers, the real tokens of a batch row are bounds[b, 0] ... bounds[b, 1] - 1. Others are
            not read, and their output is zero.
        table: of tile configurations, see `tiles`.

    Returns:
        out (B, H, T, D) in the dtype of ``query``, stored row by row as (B, T, H, D); lse (B, H, T) float32, -inf
        where a row reads nothing; P |V| like out, or None.
    """
    batch, heads, queries, head_dim = query.shape
    tiles = config("forward", query, absolute, softcap is not None, table)
    rows = (batch, queries, heads, head_dim)
    out = torch.empty(rows, dtype=query.dtype, device=query.device).transpose(1, 2)
    size = torch.empty(rows, dtype=query.dtype, device=query.device).transpose(1, 2) if absolute else None
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    count = triton.cdiv(queries, tiles.queries)
    launch(
        forward_kernel, count * batch * heads,
        query, key, value, out, size, lse, _plain(sinks), _plain(bounds), *strides(query, key, value, out),
        queries, key.shape[2], heads, heads // key.shape[1], count, *_score_scalars(key, scale, window, softcap),
        **_flags(key, causal, window, softcap, bounds), SINKS=sinks is not None, ABSOLUTE=absolute,
        HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), **_launch(tiles),
    )  # fmt: skip
    return out, lse, size


def backward(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    absolute_out: Tensor | None,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    bounds: Tensor | None = None,
    value_share: float,
    score_share: float,
    ratio: bool,
    epsilon: float = 0.0,
    gamma: float = 0.0,
    table: Table = TABLE,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Relevance gradients of query, key and value from ``g`` (B, H, T, D), that of the output.

    Args:
        out, lse, absolute_out: what `forward` returned for the same arguments; absolute_out if ``gamma``.
        value_share, score_share: multiply the plain gradients. score_share 0: the weights are constants, and the
            gradients of query and key are None.
        ratio: soft-caps pass cap(s)/s instead of their derivative.
        epsilon, gamma: stabilisers of the product of weights and values.
        table: as in `forward`.
    """
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    scored, gammaed = score_share != 0, gamma != 0
    by_key, by_query = (config(step, query, gammaed, softcap is not None, table) for step in ("dkv", "dq"))
    scalars = _score_scalars(key, scale, window, softcap)
    flags = _flags(key, causal, window, softcap, bounds)
    shape = {"HEAD_DIM": head_dim, "BLOCK_D": block_d(head_dim)}
    bounds, lse = _plain(bounds), lse.contiguous()
    if absolute_out is not None and absolute_out.stride() != out.stride():
        as_out = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
        absolute_out = as_out.copy_(absolute_out)

    listed_count = triton.cdiv(queries, by_key.queries)
    u, size = None, query.numel()  # size: from the first u to the second
    if epsilon or gammaed or g.dtype != query.dtype:
        u = torch.empty((1 + gammaed, *query.shape), dtype=query.dtype, device=query.device)
    passed = torch.empty_like(lse) if scored else None
    active, listed, rank = (
        torch.empty(batch * heads, listed_count + more, dtype=torch.int32, device=query.device) for more in (0, 0, 1)
    )
    launch(
        prepare_kernel, listed_count * batch * heads,
        g, out, absolute_out, u, passed, active, bounds, *strides(g, out),
        queries, keys, heads, listed_count, size, float(epsilon), float(gamma),
        STABILISED=bool(epsilon or gammaed), GAMMA=gammaed, SCORES=scored, WRITE_U=u is not None,
        BOUNDS=flags["BOUNDS"], BLOCK_M=by_key.queries, **shape,
        num_warps=min(max(by_key.queries * block_d(head_dim) // 512, 4), 16),  # 16 elements a thread
    )  # fmt: skip
    launch(compact_kernel, batch * heads, active, listed, rank, listed_count, BLOCK=_COMPACT)

    u = g if u is None else u
    u_strides = u.stride()[-4:]
    dv = torch.empty_like(value)
    dk = torch.empty_like(key) if scored else None
    count = triton.cdiv(keys, by_key.keys)
    launch(
        dkv_kernel, count * batch * kv_heads,
        query, key, value, u, dk, dv, lse, passed, listed, rank, bounds,
        *strides(query, key, value), *u_strides, *strides(dv if dk is None else dk, dv),
        queries, keys, heads, heads // kv_heads, count, listed_count, size, *scalars,
        float(score_share * scale), float(value_share),
        **flags, SCORES=scored, RATIO=ratio, GAMMA=gammaed, **shape, **_launch(by_key),
    )  # fmt: skip
    if not scored:
        return None, None, dv
    dq = torch.empty_like(query)
    count = triton.cdiv(queries, by_query.queries)
    launch(
        dq_kernel, count * batch * heads,
        query, key, value, u, dq, lse, passed, rank, bounds, *strides(query, key, value), *u_strides, *strides(dq),
        queries, keys, heads, heads // kv_heads, count, listed_count, size, *scalars, float(score_share * scale),
        **flags, RATIO=ratio, GAMMA=gammaed, LISTED_M=by_key.queries, **shape, **_launch(by_query),
    )  # fmt: skip
    return dq, dk, dv


_COMPACT = 1024  # query tiles that compact_kernel looks at together


def _score_scalars(key, scale, window, softcap):
    """window, qk_scale, cap_scale: what the kernels make scores of."""
    return min(window or 0, key.shape[2]), scale * _LOG2_E, scale / softcap if softcap else 0.0


def _flags(key, causal, window, softcap, bounds):
    # A window as long as the context hides nothing that comes before a query.
    hides = window is not None and window < key.shape[2]
    return {"CAUSAL": causal, "WINDOW": hides, "SOFTCAP": softcap is not None, "BOUNDS": bounds is not None}


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _launch(tiles: Tiles):
    return {
        "BLOCK_M": tiles.queries, "BLOCK_N": tiles.keys, "num_warps": tiles.num_warps, "num_stages": tiles.num_stages
    }  # fmt: skip


# ---- For the compile gate -------------------------------------------------------------------------------------------


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    """Every row of tiles.json, in the forms that need most: all flags, none, and dV alone."""
    half, full = DTYPES[1:]
    calls = {}
    for dim in (64, 80, 96, 128, 256):
        narrow = dim in (80, 96)  # features beside a wider tile
        for dtype in (half,) if narrow else (half, full):
            forms = ("plain", "all flags", "cp", *(["capped"] if dtype == half else []))
            for form in ("plain",) if narrow else forms:
                name = f"{dim}-{str(dtype)[6:]}-{form}".replace(" ", "-")
                calls[name] = lambda dim=dim, dtype=dtype, form=form: _both(dim, dtype, form)
    for form in ("gradient", "all flags"):
        calls[f"128-float16-{form}".replace(" ", "-")] = lambda form=form: _both(128, torch.float16, form)
    for form in ("epsilon", "cp gamma", "both ways"):
        calls[f"128-bfloat16-{form}".replace(" ", "-")] = lambda form=form: _both(128, half, form)
    calls["128-bfloat16-far-features"] = lambda: _both(128, half, "plain", far=True)
    cases, seen = [], []
    for case in record(calls, on):
        if case[1:] not in seen:
            seen.append(case[1:])
            cases.append((f"{case[0]}-{case[1].fn.__name__}", *case[1:]))
    return cases


def _both(dim, dtype, form, far=False):
    """A forward and a backward pass over tensors that have no memory; ``far``: a token's features lie 4097 apart."""
    meta = {"dtype": dtype, "device": "meta"}
    query, key, value, g = (torch.empty(2, 4097, h, dim, **meta).transpose(1, 2) for h in (32, 8, 8, 32))
    if far:
        query, key, value, g = (t.mT.contiguous().mT for t in (query, key, value, g))
    flags = {"scale": 0.1, "causal": form != "both ways", "window": None, "softcap": None}
    rest = {"value_share": 0.5, "score_share": 0.0 if form.startswith("cp") else 0.25, "ratio": form != "gradient"}
    extra = {}
    if form == "all flags":
        flags |= {"window": 1024, "softcap": 30.0, "bounds": torch.empty(2, 2, dtype=torch.int64, device="meta")}
        rest |= {"epsilon": 0.1, "gamma": 0.1}
        extra = {"sinks": torch.empty(32, **meta), "absolute": True}
    elif form in ("capped", "gradient"):
        flags["softcap"] = 30.0
    elif form == "epsilon":
        rest["epsilon"] = 0.1
    elif form == "cp gamma":
        rest["gamma"] = 0.1
        extra["absolute"] = True
    out, lse, size = forward(query, key, value, **flags, **extra)
    backward(g, query, key, value, out, lse, size, **flags, **rest)
