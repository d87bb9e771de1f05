"""Node relevance: the sum over features of x * g, row by row, in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import DTYPES, Case, as_rows, launch, record, strides


@triton.jit
def node_relevance_kernel(
    x, g, relevance, rows, features, stride_xr, stride_xf, stride_gr, stride_gf,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    p_x = x + o_r[:, None] * stride_xr
    p_g = g + o_r[:, None] * stride_gr
    b_sum = tl.zeros([BLOCK_R, BLOCK_F], dtype=tl.float32)
    for i_f in range(0, tl.cdiv(features, BLOCK_F)):
        o_f = (i_f * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]).to(tl.int64)
        mask = (o_r[:, None] < rows) & (o_f < features)
        b_x = tl.load(p_x + o_f * stride_xf, mask=mask, other=0).to(tl.float32)
        b_g = tl.load(p_g + o_f * stride_gf, mask=mask, other=0).to(tl.float32)
        b_sum += b_x * b_g
    tl.store(relevance + o_r, tl.sum(b_sum, axis=1), mask=o_r < rows)


def node_relevance(x: Tensor, g: Tensor) -> Tensor:
    """Sum over the last dimension of ``x * g``: (..., D) of any strides, each of its own dtype -> (...) float32."""
    relevance = x.new_empty(x.shape[:-1], dtype=torch.float32)
    x, g = as_rows(x), as_rows(g)
    rows, features = x.shape
    block_f = min(triton.next_power_of_2(features), 1024)
    block_r = 1024 // block_f
    arguments = (x, g, relevance, rows, features, *strides(x, g))
    launch(node_relevance_kernel, triton.cdiv(rows, block_r), *arguments, BLOCK_R=block_r, BLOCK_F=block_f)
    return relevance


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    calls = {}
    for dtype, features in [*((d, 4096) for d in DTYPES), (DTYPES[1], 4095)]:
        x = torch.empty(4097, features, dtype=dtype, device="meta")
        for g in (x, torch.empty_like(x, dtype=torch.float32)):
            name = f"node_relevance-{dtype}-{g.dtype}{'-odd' * (features % 2)}".replace("torch.", "")
            calls[name] = lambda x=x, g=g: node_relevance(x, g)
    return record(calls, on)
