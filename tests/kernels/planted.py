"""Kernels with a fault each, and one without: tests/test_executed.py runs this, and sees what ``--ptx`` notices."""

import torch
import triton
import triton.language as tl

from lrp_fast.kernels.common import launch


@triton.jit
def copy_kernel(x, y, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, tl.load(x + o))


@triton.jit
def race_kernel(x, y, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + o))  # all programs write there: "between programs"


@triton.jit
def beyond_kernel(x, y, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o + 64)  # the last program reads beyond the end: "out of bounds"
    tl.store(y + o, b_x)


def run(kernel):
    x, y = torch.arange(512.0).to(torch.bfloat16), torch.empty(512, dtype=torch.bfloat16)
    launch(kernel, 4, x, y, BLOCK=128)
    return x, y


def test_sound():
    x, y = run(copy_kernel)
    assert torch.equal(x, y)


def test_race():
    run(race_kernel)


def test_out_of_bounds():
    run(beyond_kernel)


def test_wrong_besides():
    x, y = run(race_kernel)
    assert torch.equal(x, y)
