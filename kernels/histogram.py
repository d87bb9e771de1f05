"""Sums of magnitudes by their leading bits, exactly: of integers, so that the order of additions changes nothing."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Case, pointwise, record, tile


@triton.jit(do_not_specialize=["rows", "features"])
def histogram_kernel(
    x, sums, rows, features, stride_xr, stride_xf, stride_s, stride_none,
    LOW: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, m = tile(rows, features, BLOCK_R, BLOCK_F)
    b_bits = tl.abs(tl.load(x + o_r * stride_xr + o_f * stride_xf, mask=m, other=0.0)).to(tl.int32, bitcast=True)
    b_whole = (b_bits & 0x7FFFFF) + tl.where(b_bits >= 0x800000, 0x800000, 0)
    # Zeros, which the hidden half of a causal tile is full of, would all meet at one address.
    tl.atomic_add(sums + (b_bits >> LOW), b_whole.to(tl.int64), mask=m & (b_bits != 0), sem="relaxed")


def add_magnitudes(x: Tensor, sums: Tensor, low: int) -> None:
    """Adds to ``sums`` (2 ** (31 - low),) int64, at the bits of |x| above the lowest ``low``, what |x| is in units of
    the last place of its bin (low <= 23: the exponent is among them). ``x``: (R, C) float32."""
    pointwise(histogram_kernel, [x, sums.view(1, -1)], LOW=low)


# ---- For the compile gate -------------------------------------------------------------------------------------------


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    x, sums = torch.empty(512, 4096, device="meta"), torch.empty(2**15, dtype=torch.int64, device="meta")
    return record({"float32": lambda: add_magnitudes(x, sums, 16)}, on)
