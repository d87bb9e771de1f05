"""What the backward passes begin with: the gradient behind the stabilisers, and which tiles of it carry relevance."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import launch, strides, unfused
from .arguments import block_d, plain
from .pieces import load_tile, real_span, store_tile

_COMPACT = 1024  # tiles that compact_kernel looks at together


@unfused
@triton.jit(do_not_specialize=["queries", "keys", "heads", "tiles"])
def prepare_kernel(
    g, o, a, u, passed, norms, active, bounds,
    stride_gb, stride_gh, stride_gt, stride_gd,
    stride_ob, stride_oh, stride_ot, stride_od,
    queries, keys, heads, tiles, size, epsilon, gamma,
    STABILISED: tl.constexpr, GAMMA: tl.constexpr, SCORES: tl.constexpr, WRITE_U: tl.constexpr, NORMS: tl.constexpr,
    ACTIVE: tl.constexpr, BOUNDS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """u (B, H, T, D), what the stabilisers make of g (with GAMMA a second one follows, ``size`` elements on: the part
    that meets |V|); passed (B, H, T) = <u, o>; norms (B, H, T) = |u|, of both together; and active (B H, tiles) int32:
    whether a tile of rows has any u != 0."""
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
                b_more = 0.5 * gamma * b_ts
                if WRITE_U:
                    b_more = b_more.to(u.dtype.element_ty)
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
    if NORMS:
        # In units of the largest: squares of what is below 1e-19 would be 0.
        b_most = tl.max(tl.abs(b_u.to(tl.float32)), 1)
        if GAMMA:
            b_most = tl.maximum(b_most, tl.max(tl.abs(b_more.to(tl.float32)), 1))
        b_unit = tl.where(b_most == 0.0, 1.0, b_most)[:, None]
        b_share = b_u.to(tl.float32) / b_unit
        b_square = tl.sum(b_share * b_share, 1)
        if GAMMA:
            b_share = b_more.to(tl.float32) / b_unit
            b_square += tl.sum(b_share * b_share, 1)
        tl.store(norms + i_bh.to(tl.int64) * queries + o_t, b_most * tl.sqrt(b_square), mask=o_t < queries)
    if ACTIVE:
        b_any = b_u != 0.0
        if GAMMA:
            b_any = b_any | (b_more != 0.0)
        tl.store(active + i_bh.to(tl.int64) * tiles + i_t, tl.max(tl.max(b_any.to(tl.int32), 1), 0))


@triton.jit(do_not_specialize=["tiles"])
def compact_kernel(active, listed, rank, tiles, BLOCK: tl.constexpr):
    """Of one row of active (rows, tiles): listed (rows, tiles), its active tiles in order; and rank (rows, tiles + 1),
    how many come before each."""
    i_row = tl.program_id(0).to(tl.int64)
    active += i_row * tiles
    listed += i_row * tiles
    rank += i_row * (tiles + 1)
    total = 0
    for start in range(0, tiles, BLOCK):
        o_m = start + tl.arange(0, BLOCK)
        b_active = tl.load(active + o_m, mask=o_m < tiles, other=0).to(tl.int32)
        b_rank = total + tl.cumsum(b_active, 0) - b_active
        tl.store(rank + o_m, b_rank, mask=o_m < tiles)
        tl.store(listed + b_rank, o_m, mask=b_active != 0)
        total += tl.sum(b_active, 0)
    tl.store(rank + tiles, total)


class Prepared(NamedTuple):
    """What `prepare` returns; None where it was not wanted."""

    u: Tensor | None  # (1 + gamma, B, H, T, D) in the dtype of query; None also where it is g as it came
    passed: Tensor | None  # (B, H, T) float32
    norms: Tensor | None  # (B, H, T) float32
    active: Tensor | None  # (B H, tiles) int32


def prepare(
    g: Tensor,
    query: Tensor,
    keys: int,
    out: Tensor,
    absolute_out: Tensor | None,
    bounds: Tensor | None,
    *,
    epsilon: float,
    gamma: float,
    rows: int,
    written: bool = True,
    passed: bool = False,
    norms: bool = False,
    active: bool = False,
) -> Prepared:
    """Runs `prepare_kernel`, by tiles of ``rows`` queries, for what is wanted of it.

    Args:
        g, query, out, absolute_out, bounds, epsilon, gamma: as `backward` takes them.
        keys: how many there are.
        written: whether u is wanted.
    """
    batch, heads, queries, head_dim = query.shape
    stabilised, gammaed = bool(epsilon or gamma), gamma != 0
    if absolute_out is not None and absolute_out.stride() != out.stride():
        as_out = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
        absolute_out = as_out.copy_(absolute_out)
    count, here = triton.cdiv(queries, rows), {"device": query.device}
    u = None
    if written and (stabilised or g.dtype != query.dtype):
        u = torch.empty((1 + gammaed, *query.shape), dtype=query.dtype, **here)
    wanted = (passed, norms)
    by_row = [torch.empty(query.shape[:3], dtype=torch.float32, **here) if each else None for each in wanted]
    tiles = torch.empty(batch * heads, count, dtype=torch.int32, **here) if active else None
    if u is not None or passed or norms or active:
        launch(
            prepare_kernel, count * batch * heads,
            g, out, absolute_out, u, *by_row, tiles, plain(bounds), *strides(g, out),
            queries, keys, heads, count, query.numel(), float(epsilon), float(gamma),
            STABILISED=stabilised, GAMMA=gammaed, SCORES=passed, WRITE_U=u is not None, NORMS=norms, ACTIVE=active,
            BOUNDS=bounds is not None, HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), BLOCK_M=rows,
            num_warps=min(max(rows * block_d(head_dim) // 512, 4), 16),  # 16 elements a thread
        )  # fmt: skip
    return Prepared(u, *by_row, tiles)


def compact(active: Tensor) -> tuple[Tensor, Tensor]:
    """listed (rows, tiles) and rank (rows, tiles + 1) int32 of ``active`` (rows, tiles), integers or bool: see
    `compact_kernel`."""
    rows, tiles = active.shape
    listed, rank = (torch.empty(rows, tiles + more, dtype=torch.int32, device=active.device) for more in (0, 1))
    active = active.contiguous()
    active = active.view(torch.uint8) if active.dtype == torch.bool else active
    launch(compact_kernel, rows, active, listed, rank, tiles, BLOCK=_COMPACT)
    return listed, rank
