"""The forward pass: the online softmax, a program a tile of queries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import launch, strides
from ..tiles import TABLE, Table
from . import arguments
from .arguments import block_d, flags_of, launched, magnitudes, plain, score_scalars
from .pieces import key_tiles, load_tile, real_span, scores, store_tile


@triton.jit
def attend(b_acc, b_abs, b_max, b_sum, b_q, k, v, v_abs, o_i, start, count, jump_at, jump, first, end, window,
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
            b_v = load_tile(v_abs, o_j, HEAD_DIM, 1, first, end, HEAD_DIM, BLOCK_D, MASKED)
            b_abs = tl.dot(b_p, b_v, b_abs * b_rescale[:, None], input_precision="ieee")
    return b_acc, b_abs, b_max, b_sum


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "window"])
def forward_kernel(
    q, k, v, v_abs, o, a, lse, sinks, bounds,
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
    if ABSOLUTE:
        v_abs += (i_b * (heads // groups) + i_kv) * keys * HEAD_DIM

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
        b_acc, b_abs, b_max, b_sum, b_q, k, v, v_abs, o_i, full_lo, full_hi - full_lo, 0, 0, first, end, window,
        stride_ks, stride_kd, stride_vs, stride_vd, qk_scale, cap_scale,
        CAUSAL, WINDOW, SOFTCAP, ABSOLUTE, HEAD_DIM, BLOCK_D, BLOCK_N, False,
    )  # fmt: skip
    b_acc, b_abs, b_max, b_sum = attend(
        b_acc, b_abs, b_max, b_sum, b_q, k, v, v_abs, o_i, lo, (full_lo - lo) + (hi - full_hi), full_lo - lo,
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
        window: query i reads keys i - window + 1 ... i, or up to i + window - 1 where not causal.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: (H,), one more logit a head in the denominator, which lse includes.
        bounds: (B, 2) integers, the real tokens of a batch row are bounds[b, 0] ... bounds[b, 1] - 1. Others are
            not read, and their output is zero.
        table: of tile configurations, see `tiles`.

    Returns:
        out (B, H, T, D) in the dtype of ``query``, stored row by row as (B, T, H, D); lse (B, H, T) float32, -inf
        where a row reads nothing; P |V| like out, or None.
    """
    batch, heads, queries, head_dim = query.shape
    tiles = arguments.config("forward", query, absolute, softcap is not None, table)
    rows = (batch, queries, heads, head_dim)
    out = torch.empty(rows, dtype=query.dtype, device=query.device).transpose(1, 2)
    size = torch.empty(rows, dtype=query.dtype, device=query.device).transpose(1, 2) if absolute else None
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    count = triton.cdiv(queries, tiles.queries)
    launch(
        forward_kernel, count * batch * heads,
        query, key, value, magnitudes(value) if absolute else None, out, size, lse, plain(sinks), plain(bounds),
        *strides(query, key, value, out),
        queries, key.shape[2], heads, heads // key.shape[1], count, *score_scalars(key, scale, window, softcap),
        **flags_of(key, causal, window, softcap, bounds), SINKS=sinks is not None, ABSOLUTE=absolute,
        HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), **launched(tiles),
    )  # fmt: skip
    return out, lse, size
