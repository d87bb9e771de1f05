"""What the backward passes begin with: the gradient behind the stabilisers, and which tiles of it carry relevance."""

import triton
import triton.language as tl

from ..common import unfused
from .pieces import load_tile, real_span, store_tile


@unfused
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
