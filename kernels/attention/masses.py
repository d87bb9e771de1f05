"""How much relevance meets the weights of every tile of queries and keys: what a bounded backward pass chooses by."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import launch, strides
from ..tiles import TABLE, Table
from . import arguments
from .arguments import block_d, flags_of, plain, score_scalars, unit
from .pieces import key_tiles, load_lse, load_tile, real_span, scores
from .prepare import prepare

_PREPARED = 32  # queries that a program of prepare_kernel looks at


@triton.jit
def weigh(b_q, b_lse, b_norm, k, p_mass, o_i, start, count, jump_at, jump, first, end, window, stride_ks, stride_kd,
          qk_scale, cap_scale, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
          HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the masses of ``count`` key tiles; as `attend`."""
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
        b_p = tl.exp2(b_s - b_lse[:, None])
        # All at once: of a sum by rows that is summed in turn, Triton 3.7 can make nothing on sm_100.
        tl.store(p_mass + i_n, tl.sum(b_p * b_norm[:, None]))


@triton.jit(do_not_specialize=["queries", "keys", "heads", "groups", "tiles", "key_tile_count", "part", "begin", "step",
                               "count", "window"])  # fmt: skip
def masses_kernel(
    q, k, lse, norms, masses, bounds,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_ks, stride_kd,
    queries, keys, heads, groups, tiles, key_tile_count, part, begin, step, count, window, qk_scale, cap_scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BOUNDS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """masses (B H, tiles, key_tile_count) of one tile of BLOCK_M queries of one head, where not 0; of each unit of
    ``part`` such tiles begin, begin + step, ... , ``count`` tiles in all."""
    i_pid = tl.program_id(0)
    i_c = count - 1 - i_pid % count  # the last tiles see the most keys, and start first
    i_t = (begin + i_c // part * step) * part + i_c % part
    i_bh = i_pid // count
    i_b = (i_bh // heads).to(tl.int64)
    i_h = i_bh % heads
    q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh
    k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    lse += i_bh.to(tl.int64) * queries
    norms += i_bh.to(tl.int64) * queries
    masses += (i_bh.to(tl.int64) * tiles + i_t) * key_tile_count

    offset = keys - queries
    first, end, t_first, t_end = real_span(bounds, i_b, queries, keys, BOUNDS)
    o_t = i_t * BLOCK_M + tl.arange(0, BLOCK_M)
    b_norm = tl.load(norms + o_t, mask=(o_t >= t_first) & (o_t < t_end), other=0.0)
    # Without relevance there is nothing to read.
    t_end = tl.where(tl.max((b_norm != 0.0).to(tl.int32), 0) > 0, t_end, 0)
    b_lse = load_lse(lse, o_t, t_first, t_end)
    lo, hi, full_lo, full_hi = key_tiles(
        tl.maximum(i_t * BLOCK_M, t_first), tl.minimum(i_t * BLOCK_M + BLOCK_M, t_end),
        offset, first, end, window, CAUSAL, WINDOW, BLOCK_N,
    )  # fmt: skip

    # (BLOCK_M, BLOCK_D)
    b_q = load_tile(q, o_t, stride_qt, stride_qd, t_first, t_end, HEAD_DIM, BLOCK_D, True)
    weigh(
        b_q, b_lse, b_norm, k, masses, o_t + offset, full_lo, full_hi - full_lo, 0, 0, first, end, window,
        stride_ks, stride_kd, qk_scale, cap_scale, CAUSAL, WINDOW, SOFTCAP, HEAD_DIM, BLOCK_D, BLOCK_N, False,
    )  # fmt: skip
    weigh(
        b_q, b_lse, b_norm, k, masses, o_t + offset, lo, (full_lo - lo) + (hi - full_hi), full_lo - lo,
        full_hi - full_lo, first, end, window,
        stride_ks, stride_kd, qk_scale, cap_scale, CAUSAL, WINDOW, SOFTCAP, HEAD_DIM, BLOCK_D, BLOCK_N, True,
    )  # fmt: skip


def tile_masses(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    out: Tensor,
    lse: Tensor,
    absolute_out: Tensor | None,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    bounds: Tensor | None = None,
    epsilon: float = 0.0,
    gamma: float = 0.0,
    first: int = 0,
    step: int = 1,
    table: Table = TABLE,
) -> Tensor:
    """Masses sum_i |u_i| sum_j P_ij of all tiles of m queries i and n keys j, see `unit`: (B, H, ceil(T / m),
    ceil(S / n)) float32.

    u is the relevance gradient at the head's output behind the stabilisers, |u| its Euclidean norm, with ``gamma`` of
    the parts that meet V and |V| together. Over the keys, masses sum to sum_i |u_i|, less what sinks take.

    Args:
        g, query, key, out, lse, absolute_out, scale, causal, window, softcap, bounds, epsilon, gamma: as `backward`
            takes them.
        first, step: only of query tiles first, first + step, ... are masses computed; those of the others are 0.
        table: as in `forward`.
    """
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    gammaed, capped = gamma != 0, softcap is not None
    m, n = unit(query, gammaed, capped, table)
    tiles = arguments.config("masses", query, False, capped, table)
    # Kernels' tiles within one of the masses: the last axis and, within rows, the one before it are summed.
    block_m, block_n = min(tiles.queries, m), min(tiles.keys, n)
    part, units, key_units = m // block_m, triton.cdiv(queries, m), triton.cdiv(keys, n)
    key_tile_count = key_units * (n // block_n)
    norms = prepare(
        g, query, keys, out, absolute_out, bounds, epsilon=epsilon, gamma=gamma, rows=_PREPARED, written=False,
        norms=True,
    ).norms  # fmt: skip
    found = torch.zeros(batch, heads, units * part, key_tile_count, dtype=torch.float32, device=query.device)
    count = len(range(first, units, step)) * part
    launch(
        masses_kernel, count * batch * heads,
        query, key, lse.contiguous(), norms, found, plain(bounds), *strides(query, key),
        queries, keys, heads, heads // key.shape[1], units * part, key_tile_count, part, first, step, count,
        *score_scalars(key, scale, window, softcap), **flags_of(key, causal, window, softcap, bounds),
        HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), BLOCK_M=block_m, BLOCK_N=block_n,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    if found.shape[2:] != (units, key_units):
        found = found.unflatten(3, (key_units, -1)).unflatten(2, (units, -1)).sum((3, 5))
    return found
