"""Whole tiles of edges, written to memory."""

import triton
import triton.language as tl
from torch import Tensor

from ..attention.arguments import launched
from ..common import launch
from ..tiles import TABLE, Table
from .edge_tile import edge_tile
from .given import Pass, head_lists, launch_arguments, visits


@triton.jit(do_not_specialize=["count", "queries", "keys", "kv_heads", "groups", "blocks", "low", "end", "window"])
def tile_kernel(
    q, u, more, k, v, k_part, v_part, v_abs, v_more, lse, passed, kept, heads, ranks, rows, found,
    stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
    stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
    stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
    count, queries, keys, kv_heads, groups, blocks, low, end, window, qk_scale, cap_scale, through_scale, value_share,
    GROUPED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCORES: tl.constexpr,
    RATIO: tl.constexpr, GAMMA: tl.constexpr, K_PART: tl.constexpr, V_PART: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT_M: tl.constexpr, UNIT_N: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """found (count, end - low): edges from the listed queries to keys low ... end - 1, one tile a program."""
    i_pid = tl.program_id(0)
    o_r = (i_pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_j = low + (i_pid // blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_t = tl.load(rows + tl.minimum(o_r, count - 1)).to(tl.int32)
    if UNIT_N > 0:
        i_list = (i_pid % blocks).to(tl.int64) * tl.cdiv(end - low, BLOCK_N) + i_pid // blocks
        heads += i_list * kv_heads * groups
        ranks += i_list * (kv_heads * groups + 1)
    b_a = edge_tile(
        q, u, more, k, v, k_part, v_part, v_abs, v_more, lse, passed, kept, heads, ranks, b_t, o_j, end,
        queries, keys, kv_heads, groups, window,
        stride_qh, stride_qt, stride_qd, stride_uh, stride_ut, stride_ud,
        stride_kh, stride_ks, stride_kd, stride_vh, stride_vs, stride_vd,
        stride_kph, stride_kps, stride_kpd, stride_vph, stride_vps, stride_vpd,
        qk_scale, cap_scale, through_scale, value_share, GROUPED, CAUSAL, WINDOW, SOFTCAP, SCORES, RATIO, GAMMA,
        K_PART, V_PART, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, UNIT_M, UNIT_N, SPAN,
    )  # fmt: skip
    p_found = found + o_r[:, None].to(tl.int64) * (end - low) + (o_j - low)[None, :]
    tl.store(p_found, b_a, mask=(o_r < count)[:, None] & (o_j < end)[None, :])


def tile(given: Pass, rows: Tensor, keys: slice, found: Tensor, table: Table = TABLE) -> Tensor:
    """Edges from queries ``rows`` (R,) int64 to ``keys``, (R, S), 0 where a query does not read a key.

    They lie in ``found``, float32, of R x S elements at least: the next call may write there again.
    """
    found = found[: len(rows) * (keys.stop - keys.start)].view(len(rows), -1)
    tiles, tensors, steps, sizes, forms = launch_arguments(given, table)
    visited, spanned = visits(given, tiles, rows, keys, anywhere=True)
    lists = head_lists(visited)
    blocks = triton.cdiv(len(rows), tiles.queries)
    launch(
        tile_kernel, blocks * triton.cdiv(found.shape[1], tiles.keys),
        *tensors, *lists, rows, found, *steps, len(rows), *sizes, blocks, keys.start, keys.stop, *given.scalars,
        **forms, **spanned, **launched(tiles),
    )  # fmt: skip
    return found
