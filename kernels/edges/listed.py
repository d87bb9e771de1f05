"""Each query's strongest edges, chosen on chip."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.arguments import launched
from ..attention.pieces import key_tiles
from ..attention.prepare import compact
from ..common import launch
from ..tiles import TABLE, Table
from .edge_tile import edge_tile
from .given import Pass, head_lists, launch_arguments, visits

MOST = 64  # edges of a row that `strongest` keeps at most: they lie in registers

# Keys that one program looks through for the strongest, at most and at least, and how many programs are enough: the
# programs of many rows share their queries in the cache, few rows leave most multiprocessors idle (an H200 with 4,096
# keys a program: 8 % of its peak at 4,096 tokens, which make 64 programs, and 32 % at 65,536).
_SEGMENT, _LEAST_SEGMENT = 4096, 512
_PROGRAMS = 512
_LISTED = 2**23  # candidates in memory at a time, 8 bytes each, of all segments

_MOST_KEYS = 2**31 - 1  # what a column is counted down from in a candidate


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
    do_not_specialize=["count", "queries", "keys", "kv_heads", "groups", "segments", "segment", "most", "window"]
)
def strongest_kernel(
    q, u, more, k, v, k_part, v_part, v_abs, v_more, lse, passed, kept, heads, ranks, places, before,
    rows, listed, dropped,
    stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
    stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
    stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
    count, queries, keys, kv_heads, groups, segments, segment, most, window,
    qk_scale, cap_scale, through_scale, value_share,
    GROUPED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
    RATIO: tl.constexpr, GAMMA: tl.constexpr, K_PART: tl.constexpr, V_PART: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    UNIT_M: tl.constexpr, UNIT_N: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """listed (count, segments, most): the strongest of the ``segment`` key tiles of each segment, in no order; dropped
    (count, segments, 2): what the others of them add up to, positive and negative.

    Unless UNIT_N is 0, places and before list the key tiles of these queries that any head keeps.
    """
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
    b_empty = tl.where(o_k < most, -1 - o_k.to(tl.int64), 9223372036854775807)
    b_best = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.int64) + b_empty[None, :]
    b_least = tl.min(b_best, 1)
    b_plus = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_minus = tl.zeros([BLOCK_M], dtype=tl.float32)
    start = tl.maximum(lo, i_s * segment)
    end = tl.minimum(hi, i_s * segment + segment)
    if UNIT_N > 0:
        columns = tl.cdiv(keys, BLOCK_N)
        places += i_m.to(tl.int64) * columns
        before += i_m.to(tl.int64) * (columns + 1)
        # From numbers of tiles to places in the list.
        end = tl.load(before + tl.maximum(end, start))
        start = tl.load(before + start)
    for i_at in range(start, end):
        i_n = i_at
        p_heads = heads
        p_ranks = ranks
        if UNIT_N > 0:
            i_n = tl.load(places + i_at)
            p_heads = heads + (i_m.to(tl.int64) * columns + i_n) * (kv_heads * groups)
            p_ranks = ranks + (i_m.to(tl.int64) * columns + i_n) * (kv_heads * groups + 1)
        o_j = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        b_a = edge_tile(
            q, u, more, k, v, k_part, v_part, v_abs, v_more, lse, passed, kept, p_heads, p_ranks, b_t, o_j, keys,
            queries, keys, kv_heads, groups, window,
            stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
            stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
            stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
            qk_scale, cap_scale, through_scale, value_share, GROUPED, CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA,
            K_PART, V_PART, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, UNIT_M, UNIT_N, SPAN,
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
    tl.store(listed + o_s[:, None] * most + o_k[None, :], b_best, mask=m_r[:, None] & (o_k < most)[None, :])
    tl.store(dropped + o_s * 2, b_plus, mask=m_r)
    tl.store(dropped + o_s * 2 + 1, b_minus, mask=m_r)


def strongest(given: Pass, rows: Tensor, k: int, table: Table = TABLE) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` edges of largest magnitude from each of the queries ``rows`` (R,) int64, exactly.

    Of equal ones those to the lower keys; zeros are never chosen.

    Args:
        k: 1 ... MOST.

    Returns:
        columns (R, k) int32, ascending, the largest int32 where a row has fewer; weights (R, k) float32, there 0; and
        (R, 2), the sums of the positive and of the negative edges that were left out.
    """
    tiles, tensors, steps, sizes, forms = launch_arguments(given, table)
    segment, segments = _segments(triton.cdiv(len(rows), tiles.queries), given.key.shape[2], tiles.keys)
    found = []
    for part in rows.split(max(1, _LISTED // (segments * k * tiles.queries)) * tiles.queries):
        listed = torch.empty(len(part), segments, k, dtype=torch.int64, device=rows.device)
        dropped = torch.empty(len(part), segments, 2, dtype=torch.float32, device=rows.device)
        visited, spanned = visits(given, tiles, part, slice(0, given.key.shape[2]))
        # (queries, keys) tiles that any head keeps
        lists = (None, None) if visited is None else compact(visited.amax(-1))
        launch(
            strongest_kernel, triton.cdiv(len(part), tiles.queries) * segments,
            *tensors, *head_lists(visited), *lists, part, listed, dropped, *steps, len(part), *sizes, segments, segment,
            k, *given.scalars, **forms, **spanned, BLOCK_K=max(2, triton.next_power_of_2(k)), **launched(tiles),
        )  # fmt: skip
        found.append(_merged(listed.flatten(1), dropped, k))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _segments(blocks: int, keys: int, tile: int) -> tuple[int, int]:
    """Key tiles of a segment, and how many segments there are, for so many blocks of rows."""
    length = _SEGMENT
    while length > _LEAST_SEGMENT and blocks * triton.cdiv(keys, length) < _PROGRAMS:
        length //= 2
    segment = triton.cdiv(length, tile)
    return segment, triton.cdiv(keys, segment * tile)


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
