"""What the kernels of attention and of its edges share: loads, what a tile reads, scores and their gradient."""

import triton
import triton.language as tl


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
        if not CAUSAL:
            hi = tl.minimum(hi, t_hi - 1 + offset + window)
            full_hi = tl.minimum(full_hi, t_lo + offset + window)
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
        if not CAUSAL:
            lo = tl.maximum(lo, j_lo + 1 - window - offset)
            full_lo = tl.maximum(full_lo, j_hi - window - offset)
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
            if not CAUSAL:
                m = m & (o_j < o_i + window)
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
