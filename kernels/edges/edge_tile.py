"""A tile of edges, of which the two kernels make different things."""

import triton
import triton.language as tl

from ..attention.pieces import load_tile, scores


@triton.jit
def add_product(b_sum, b_rows, b_columns):
    """b_sum + b_rows b_columns^T.

    What is added to a product by +, Triton makes the beginning of its sum. Of products that go into others each warp
    gets whole rows, and 64 rows are too few for 8 warps: they would be computed twice.
    """
    # With fewer rows, and without tensor cores, nothing is computed twice, and sums of their own only take registers.
    if b_rows.dtype == tl.float32 or b_rows.shape[0] < 64:
        b_sum = tl.dot(b_rows, tl.trans(b_columns), b_sum, input_precision="ieee")
    else:
        b_sum = tl.fma(tl.dot(b_rows, tl.trans(b_columns), input_precision="ieee"), 1.0, b_sum)
    return b_sum


@triton.jit
def kept_pairs(kept, b_t, o_j, i_h, queries, keys, UNIT_M: tl.constexpr, UNIT_N: tl.constexpr, SPAN: tl.constexpr):
    """Which pairs of queries b_t and keys o_j lie in tiles that head i_h keeps, (BLOCK_M, BLOCK_N) or, where all keys
    are of one tile, (BLOCK_M, 1). They are of SPAN tiles at most."""
    key_units = tl.cdiv(keys, UNIT_N)
    p_kept = kept + i_h * tl.cdiv(queries, UNIT_M) * key_units + (b_t // UNIT_M).to(tl.int64) * key_units
    o_unit = tl.minimum(o_j // UNIT_N, key_units - 1)
    i_unit = tl.min(o_unit, 0)
    m = (tl.load(p_kept + i_unit) != 0)[:, None]
    if SPAN > 1:
        m = m & (o_unit == i_unit)[None, :]
        for i in tl.static_range(1, SPAN):
            b_next = tl.load(p_kept + tl.minimum(i_unit + i, key_units - 1)) != 0
            m = m | (b_next[:, None] & (o_unit == i_unit + i)[None, :])
    return m


@triton.jit
def add_head(b_a, b_k, b_v, b_abs, b_k_part, b_v_part, b_v_more, q, u, more, lse, passed, kept, i_h, b_t, o_j, queries,
             keys, stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud, qk_scale, cap_scale, through_scale,
             SOFTCAP: tl.constexpr, SCORES: tl.constexpr, RATIO: tl.constexpr, GAMMA: tl.constexpr,
             K_PART: tl.constexpr, V_PART: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
             UNIT_M: tl.constexpr, UNIT_N: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip
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
        b_e = add_product(b_e, b_more, b_v_more)
    if SCORES:
        b_ds = b_e
        if V_PART:
            b_ds = tl.dot(b_u, tl.trans(b_v), input_precision="ieee")
            if GAMMA:
                b_ds = add_product(b_ds, b_more, b_abs)
        b_passed = tl.load(passed + i_h * queries + b_t)
        b_ds = b_ds - b_passed[:, None]
        if SOFTCAP:
            b_ds = b_ds * b_factor
        if K_PART:
            b_qk = tl.dot(b_q, tl.trans(b_k_part), input_precision="ieee")
        b_e = tl.fma(b_ds, b_qk * through_scale, b_e)  # not by +: see `add_product`
    if UNIT_N > 0:
        b_p = tl.where(kept_pairs(kept, b_t, o_j, i_h, queries, keys, UNIT_M, UNIT_N, SPAN), b_p, 0.0)
    return b_a + b_p * b_e


@triton.jit
def edge_tile(q, u, more, k, v, k_part, v_part, v_abs, v_more, lse, passed, kept, heads, ranks,
              b_t, o_j, end, queries, keys, kv_heads, groups, window,
              stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
              stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
              stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
              qk_scale, cap_scale, through_scale, value_share, GROUPED: tl.constexpr,
              CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
              RATIO: tl.constexpr, GAMMA: tl.constexpr, K_PART: tl.constexpr, V_PART: tl.constexpr,
              HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
              UNIT_M: tl.constexpr, UNIT_N: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip
    """Edges (BLOCK_M, BLOCK_N) from queries b_t to keys o_j, 0 where a query does not read a key and from end on.

    Unless UNIT_N is 0, a head's pairs in tiles that it does not keep give nothing: see `kept_pairs`. Heads that keep
    any are listed in ``heads``, and ``ranks`` says how many of them come before each: the others are not looked at.
    """
    b_a = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    o_real = tl.minimum(o_j, keys - 1)  # the others come out as 0 below: no load needs a mask for them
    LISTED: tl.constexpr = UNIT_N > 0
    count = kv_heads
    if LISTED and not GROUPED:
        count = tl.load(ranks + kv_heads)
        i_next = tl.load(heads, mask=count > 0, other=0)
    for i_at in range(0, count):
        i_kv = i_at
        if LISTED and not GROUPED:
            i_kv = i_next
            i_next = tl.load(heads + i_at + 1, mask=i_at + 1 < count, other=0)  # a head ahead: see `collect`
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
            b_abs = load_tile(v_abs + i_kv * keys * HEAD_DIM, o_real, HEAD_DIM, 1, 0, 0, HEAD_DIM, BLOCK_D, False)
            b_v_more = b_abs
            if V_PART:
                b_v_more = load_tile(v_more + i_kv * keys * HEAD_DIM, o_real, HEAD_DIM, 1, 0, 0, HEAD_DIM, BLOCK_D,
                                     False)  # fmt: skip
        if GROUPED:
            lo = 0
            hi = groups
            if LISTED:
                lo = tl.load(ranks + i_kv * groups)
                hi = tl.load(ranks + i_kv * groups + groups)
                i_next = tl.load(heads + lo, mask=lo < hi, other=0)
            for i_g in range(lo, hi):
                i_h = i_kv * groups + i_g
                if LISTED:
                    i_h = i_next
                    i_next = tl.load(heads + i_g + 1, mask=i_g + 1 < hi, other=0)
                b_a = add_head(
                    b_a, b_k, b_v, b_abs, b_k_part, b_v_part, b_v_more, q, u, more, lse, passed, kept, i_h, b_t, o_j,
                    queries, keys, stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
                    qk_scale, cap_scale, through_scale,
                    SOFTCAP, SCORES, RATIO, GAMMA, K_PART, V_PART, HEAD_DIM, BLOCK_D, UNIT_M, UNIT_N, SPAN,
                )  # fmt: skip
        else:  # without a loop of its own, so that the loads above are pipelined
            b_a = add_head(
                b_a, b_k, b_v, b_abs, b_k_part, b_v_part, b_v_more, q, u, more, lse, passed, kept, i_kv, b_t, o_j,
                queries, keys, stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
                qk_scale, cap_scale, through_scale,
                SOFTCAP, SCORES, RATIO, GAMMA, K_PART, V_PART, HEAD_DIM, BLOCK_D, UNIT_M, UNIT_N, SPAN,
            )  # fmt: skip
    o_i = (b_t + (keys - queries))[:, None]
    m = (o_j < end)[None, :] & (o_i >= 0)
    if CAUSAL:
        m = m & (o_j[None, :] <= o_i)
    if WINDOW:
        m = m & (o_j[None, :] > o_i - window)
        if not CAUSAL:
            m = m & (o_j[None, :] < o_i + window)
    return tl.where(m, b_a * value_share, 0.0)
