"""The backward pass: dK and dV by tiles of keys, dQ by tiles of queries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import launch, strides
from ..tiles import TABLE, Table
from . import arguments
from .arguments import block_d, checked, flags_of, launched, magnitudes, plain, score_scalars, unit
from .pieces import key_tiles, load_lse, load_tile, query_tiles, real_span, score_gradient, scores, store_tile
from .prepare import compact, prepare


@triton.jit
def entry_of(p_listed, i_list, m, SUB: tl.constexpr):
    """The entry for tile number ``i_list`` of those that are listed, each standing for SUB of them; 0 unless m."""
    if SUB > 1:
        i_entry = tl.load(p_listed + i_list.to(tl.uint32) // SUB, mask=m, other=0)  # a shift and no more
    else:
        i_entry = tl.load(p_listed + i_list, mask=m, other=0)
    return i_entry


@triton.jit
def row_of(i_entry, i_list, SUB: tl.constexpr, BLOCK: tl.constexpr):
    """The first of the BLOCK rows of the tile itself."""
    i_row = i_entry * (SUB * BLOCK)
    if SUB > 1:
        i_row += (i_list & (SUB - 1)) * BLOCK  # SUB being a power of two
    return i_row


@triton.jit
def rank_of(p_rank, i_tile, entries, SUB: tl.constexpr):
    """How many of the listed tiles come before tile ``i_tile``, of SUB x ``entries``."""
    if SUB > 1:
        i_entry = i_tile // SUB
        before = tl.load(p_rank + i_entry)
        after = tl.load(p_rank + tl.minimum(i_entry + 1, entries))
        count = before * SUB + (after - before) * (i_tile % SUB)
    else:
        count = tl.load(p_rank + i_tile)
    return count


@triton.jit
def collect(b_dk, b_dv, b_more, b_k, b_v, b_abs, q, u, u_more, p_lse, p_passed, p_listed, o_j,
            start, count, jump_at, jump, offset, first, end, t_first, t_end, window,
            stride_qt, stride_qd, stride_ut, stride_ud, qk_scale, cap_scale,
            CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
            RATIO: tl.constexpr, GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
            BLOCK_M: tl.constexpr, SUB: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """What ``count`` listed query tiles, from number ``start`` on, add to dK, dV; jumping as `attend` does."""
    i_list = start
    if MASKED:
        i_list += tl.where(jump_at <= 0, jump, 0)
    i_entry = entry_of(p_listed, i_list, count > 0, SUB)
    for it in range(0, count):
        o_t = row_of(i_entry, i_list, SUB, BLOCK_M) + tl.arange(0, BLOCK_M)
        # The next tile's entry is fetched a tile ahead: loads whose address is loaded in their own iteration would
        # have to be pipelined behind it, and would take its stages.
        i_list = start + it + 1
        if MASKED:
            i_list += tl.where(it + 1 >= jump_at, jump, 0)
        i_entry = entry_of(p_listed, i_list, it + 1 < count, SUB)
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
                b_dp = tl.dot(b_abs, tl.trans(b_u), b_dp, input_precision="ieee")
        if SCORES:
            b_passed = tl.load(p_passed + o_t, mask=(o_t >= t_first) & (o_t < t_end), other=0.0)
            b_ds = score_gradient(b_p, b_dp, b_passed[None, :], b_factor, SOFTCAP)
            b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")
    return b_dk, b_dv, b_more


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "query_tile_count", "window"])
def dkv_kernel(
    q, k, v, v_abs, u, dk, dv, lse, passed, listed, rank, bounds,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ub, stride_uh, stride_ut, stride_ud,
    stride_dkb, stride_dkh, stride_dks, stride_dkd,
    stride_dvb, stride_dvh, stride_dvs, stride_dvd,
    queries, keys, heads, groups, tiles, query_tile_count, size, window, qk_scale, cap_scale, dk_scale, dv_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDS: tl.constexpr, SCORES: tl.constexpr,
    RATIO: tl.constexpr, GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, UNIT_M: tl.constexpr, UNIT_N: tl.constexpr,
):  # fmt: skip
    """dV, and with SCORES dK, of one tile of BLOCK_N keys: summed over the query heads that share them.

    A head has a list of query tiles or, unless UNIT_N is 0, one for every UNIT_N keys; an entry is UNIT_M queries.
    """
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
    b_abs = b_v
    if SCORES and GAMMA:
        v_abs += (i_b * kv_heads + i_kv) * keys * HEAD_DIM
        b_abs = load_tile(v_abs, o_j, HEAD_DIM, 1, first, end, HEAD_DIM, BLOCK_D, True)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    b_more = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i_g in range(0, groups):
        i_h = tl.cast(i_kv * groups + i_g, tl.int64)
        i_bh = i_b * heads + i_h
        p_q = q + i_b * stride_qb + i_h * stride_qh
        p_u = u + i_b * stride_ub + i_h * stride_uh
        i_list = i_bh
        if UNIT_N > 0:
            i_list = i_bh * tl.cdiv(keys, UNIT_N) + i_n * BLOCK_N // UNIT_N
        p_rank = rank + i_list * (query_tile_count + 1)
        p_listed = listed + i_list * query_tile_count
        p_lse = lse + i_bh * queries
        p_passed = p_lse
        if SCORES:
            p_passed = passed + i_bh * queries
        r_lo = rank_of(p_rank, lo, query_tile_count, UNIT_M // BLOCK_M)
        r_hi = rank_of(p_rank, hi, query_tile_count, UNIT_M // BLOCK_M)
        r_full_lo = rank_of(p_rank, full_lo, query_tile_count, UNIT_M // BLOCK_M)
        r_full_hi = rank_of(p_rank, full_hi, query_tile_count, UNIT_M // BLOCK_M)
        b_dk, b_dv, b_more = collect(
            b_dk, b_dv, b_more, b_k, b_v, b_abs, p_q, p_u, p_u + size, p_lse, p_passed, p_listed, o_j,
            r_full_lo, r_full_hi - r_full_lo, 0, 0, offset, first, end, t_first, t_end, window,
            stride_qt, stride_qd, stride_ut, stride_ud, qk_scale, cap_scale,
            CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_M, UNIT_M // BLOCK_M, False,
        )  # fmt: skip
        b_dk, b_dv, b_more = collect(
            b_dk, b_dv, b_more, b_k, b_v, b_abs, p_q, p_u, p_u + size, p_lse, p_passed, p_listed, o_j,
            r_lo, (r_full_lo - r_lo) + (r_hi - r_full_hi), r_full_lo - r_lo, r_full_hi - r_full_lo,
            offset, first, end, t_first, t_end, window,
            stride_qt, stride_qd, stride_ut, stride_ud, qk_scale, cap_scale,
            CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_M, UNIT_M // BLOCK_M, True,
        )  # fmt: skip

    if GAMMA:
        b_sign = tl.where(b_v > 0.0, 1.0, tl.where(b_v < 0.0, -1.0, 0.0))
        b_dv += b_sign * b_more
    store_tile(dv, b_dv * dv_scale, o_j, stride_dvs, stride_dvd, keys, HEAD_DIM, BLOCK_D)
    if SCORES:
        dk += i_b * stride_dkb + i_kv.to(tl.int64) * stride_dkh
        store_tile(dk, b_dk * dk_scale, o_j, stride_dks, stride_dkd, keys, HEAD_DIM, BLOCK_D)


@triton.jit
def return_to_queries(b_dq, b_q, b_u, b_more, b_lse, b_passed, k, v, v_abs, p_listed, o_i,
                      start, count, jump_at, jump, first, end, window, stride_ks, stride_kd, stride_vs, stride_vd,
                      qk_scale, cap_scale,
                      CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, RATIO: tl.constexpr,
                      GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
                      SUB: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """What ``count`` key tiles add to dQ; as `attend` or, unless SUB is 0, as `collect`, of the listed tiles."""
    if SUB > 0:
        i_list = start
        if MASKED:
            i_list += tl.where(jump_at <= 0, jump, 0)
        i_entry = entry_of(p_listed, i_list, count > 0, SUB)
    for it in range(0, count):
        if SUB > 0:
            i_row = row_of(i_entry, i_list, SUB, BLOCK_N)
            i_list = start + it + 1
            if MASKED:
                i_list += tl.where(it + 1 >= jump_at, jump, 0)
            i_entry = entry_of(p_listed, i_list, it + 1 < count, SUB)
        else:
            i_n = start + it
            if MASKED:
                i_n += tl.where(it >= jump_at, jump, 0)
            i_row = i_n * BLOCK_N
        o_j = i_row + tl.arange(0, BLOCK_N)
        b_k = load_tile(k, o_j, stride_ks, stride_kd, first, end, HEAD_DIM, BLOCK_D, MASKED)
        # (BLOCK_M, BLOCK_N)
        b_qk = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_s, b_factor = scores(b_qk, o_i[:, None], o_j[None, :], first, end, window, qk_scale, cap_scale,
                              CAUSAL, WINDOW, SOFTCAP, RATIO, MASKED)  # fmt: skip
        b_p = tl.exp2(b_s - b_lse[:, None])
        b_v = load_tile(v, o_j, stride_vs, stride_vd, first, end, HEAD_DIM, BLOCK_D, MASKED)
        b_dp = tl.dot(b_u, tl.trans(b_v), input_precision="ieee")
        if GAMMA:
            b_v = load_tile(v_abs, o_j, HEAD_DIM, 1, first, end, HEAD_DIM, BLOCK_D, MASKED)
            b_dp = tl.dot(b_more, tl.trans(b_v), b_dp, input_precision="ieee")
        b_ds = score_gradient(b_p, b_dp, b_passed[:, None], b_factor, SOFTCAP)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    return b_dq


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "query_tile_count", "window"])
def dq_kernel(
    q, k, v, v_abs, u, dq, lse, passed, listed, rank, bounds,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ub, stride_uh, stride_ut, stride_ud,
    stride_dqb, stride_dqh, stride_dqt, stride_dqd,
    queries, keys, heads, groups, tiles, query_tile_count, size, window, qk_scale, cap_scale, dq_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDS: tl.constexpr, RATIO: tl.constexpr,
    GAMMA: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    LISTED_M: tl.constexpr, UNIT_N: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of BLOCK_M queries of one head.

    ``rank`` counts a head's query tiles, of LISTED_M rows, with relevance; unless UNIT_N is 0, those of UNIT_N keys
    that are ``listed`` for every LISTED_M rows.
    """
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
    if GAMMA:
        v_abs += (i_b * (heads // groups) + i_kv) * keys * HEAD_DIM
    lse += i_bh.to(tl.int64) * queries
    passed += i_bh.to(tl.int64) * queries
    if UNIT_N > 0:
        entries = tl.cdiv(keys, UNIT_N)
        i_list = i_bh.to(tl.int64) * query_tile_count + i_t * BLOCK_M // LISTED_M
        rank += i_list * (entries + 1)
        listed += i_list * entries
    else:
        rank += i_bh.to(tl.int64) * (query_tile_count + 1)

    offset = keys - queries
    first, end, t_first, t_end = real_span(bounds, i_b, queries, keys, BOUNDS)
    if UNIT_N > 0:
        before = tl.load(rank)
        after = tl.load(rank + entries)
    else:
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
    if UNIT_N > 0:  # numbers of tiles become places in the list
        lo = rank_of(rank, lo, entries, UNIT_N // BLOCK_N)
        hi = rank_of(rank, hi, entries, UNIT_N // BLOCK_N)
        full_lo = rank_of(rank, full_lo, entries, UNIT_N // BLOCK_N)
        full_hi = rank_of(rank, full_hi, entries, UNIT_N // BLOCK_N)
    b_dq = return_to_queries(
        b_dq, b_q, b_u, b_more, b_lse, b_passed, k, v, v_abs, listed, o_t + offset, full_lo, full_hi - full_lo, 0, 0,
        first, end, window, stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_N, UNIT_N // BLOCK_N, False,
    )  # fmt: skip
    b_dq = return_to_queries(
        b_dq, b_q, b_u, b_more, b_lse, b_passed, k, v, v_abs, listed, o_t + offset,
        lo, (full_lo - lo) + (hi - full_hi), full_lo - lo, full_hi - full_lo,
        first, end, window, stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, RATIO, GAMMA, HEAD_DIM, BLOCK_D, BLOCK_N, UNIT_N // BLOCK_N, True,
    )  # fmt: skip
    store_tile(dq, b_dq * dq_scale, o_t, stride_dqt, stride_dqd, queries, HEAD_DIM, BLOCK_D)


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
    kept: Tensor | None = None,
    table: Table = TABLE,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Relevance gradients of query, key and value from ``g`` (B, H, T, D), that of the output.

    Args:
        out, lse, absolute_out: what `forward` returned for the same arguments; absolute_out if ``gamma``.
        value_share, score_share: multiply the plain gradients. score_share 0: the weights are constants, and the
            gradients of query and key are None.
        ratio: soft-caps pass cap(s)/s instead of their derivative.
        epsilon, gamma: stabilisers of the product of weights and values.
        kept: (B, H, ceil(T / m), ceil(S / n)) bool, tiles of m queries and n keys, as `unit` gives them. In the others
            P and dS count as 0, and nothing of theirs is read; <u, o> stays what all tiles make it. None: all tiles.
        table: as in `forward`.
    """
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    scored, gammaed, capped = score_share != 0, gamma != 0, softcap is not None
    by_key, by_query = (arguments.config(step, query, gammaed, capped, table) for step in ("dkv", "dq"))
    scalars = score_scalars(key, scale, window, softcap)
    flags = flags_of(key, causal, window, softcap, bounds)
    shape = {"HEAD_DIM": head_dim, "BLOCK_D": block_d(head_dim)}
    bounds, lse = plain(bounds), lse.contiguous()
    u, passed, _, active = prepare(
        g, query, keys, out, absolute_out, bounds, epsilon=epsilon, gamma=gamma, rows=by_key.queries, passed=scored,
        active=True,
    )  # fmt: skip
    if kept is None:
        rows, columns = by_key.queries, 0
        listed, rank = compact(active)
        seen = None
    else:
        rows, columns = unit(query, gammaed, capped, table)
        seen = _seen(checked(kept, query, key, (rows, columns)), active, rows // by_key.queries)
        listed, rank = compact(seen.mT.flatten(0, 1))
    listed_count = triton.cdiv(queries, rows)

    value_abs = magnitudes(value) if gammaed and scored else None
    u = g if u is None else u
    u_strides, size = u.stride()[-4:], query.numel()  # size: from the first u to the second
    dv = torch.empty_like(value)
    dk = torch.empty_like(key) if scored else None
    count = triton.cdiv(keys, by_key.keys)
    launch(
        dkv_kernel, count * batch * kv_heads,
        query, key, value, value_abs, u, dk, dv, lse, passed, listed, rank, bounds,
        *strides(query, key, value), *u_strides, *strides(dv if dk is None else dk, dv),
        queries, keys, heads, heads // kv_heads, count, listed_count, size, *scalars,
        float(score_share * scale), float(value_share),
        **flags, SCORES=scored, RATIO=ratio, GAMMA=gammaed, **shape, UNIT_M=rows, UNIT_N=columns, **launched(by_key),
    )  # fmt: skip
    if not scored:
        return None, None, dv
    listed, rank = (None, rank) if seen is None else compact(seen.flatten(0, 1))
    dq = torch.empty_like(query)
    count = triton.cdiv(queries, by_query.queries)
    launch(
        dq_kernel, count * batch * heads,
        query, key, value, value_abs, u, dq, lse, passed, listed, rank, bounds,
        *strides(query, key, value), *u_strides, *strides(dq),
        queries, keys, heads, heads // kv_heads, count, listed_count, size, *scalars, float(score_share * scale),
        **flags, RATIO=ratio, GAMMA=gammaed, LISTED_M=rows, UNIT_N=columns, **shape, **launched(by_query),
    )  # fmt: skip
    return dq, dk, dv


def _seen(kept: Tensor, active: Tensor, each: int) -> Tensor:
    """(B H, queries, keys) bool: the tiles of ``kept`` whose queries have relevance, of which ``active`` (B H, tiles)
    tells for each ``each``-th part of theirs."""
    whole = torch.nn.functional.pad(active, (0, kept.shape[2] * each - active.shape[1]))
    return kept.flatten(0, 1) & (whole.unflatten(1, (-1, each)).amax(-1) != 0).unsqueeze(-1)
