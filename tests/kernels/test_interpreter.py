"""The strict interpreter catches what it is there for: each kernel here is broken on purpose, but the one of products,
which are the same on every processor.
"""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr, MASK_LOAD: tl.constexpr, MASK_STORE: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_x = tl.load(x + o, mask=(o < n) | (not MASK_LOAD), other=0)
    tl.store(y + o, b_x, mask=(o < n) | (not MASK_STORE))


@triton.jit
def offset_kernel(x, y, stride):
    tl.store(y, tl.load(x) + tl.program_id(0) * stride)


@triton.jit
def scalar_kernel(x, y):
    tl.store(y, tl.load(x + 1))


@triton.jit
def dot_kernel(x, y, z, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr):
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    b_x = tl.load(x + o_m[:, None] * K + o_k)
    if TRANSPOSED:
        b_z = tl.dot(b_x, tl.trans(tl.load(y + o_n[:, None] * K + o_k)))
    else:
        b_z = tl.dot(b_x, tl.load(y + o_k[:, None] * N + o_n))
    tl.store(z + o_m[:, None] * N + o_n, b_z)


@triton.jit
def batched_dot_kernel(x, y, z, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    o_b, o_m, o_n, o_k = tl.arange(0, B)[:, None, None], tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    b_x = tl.load(x + (o_b * M + o_m[:, None]) * K + o_k)
    b_y = tl.load(y + (o_b * K + o_k[:, None]) * N + o_n)
    tl.store(z + (o_b * M + o_m[:, None]) * N + o_n, tl.dot(b_x, b_y))


@pytest.mark.parametrize("load, store", [(False, True), (True, False)])
def test_access_out_of_bounds(load, store):
    x, y = torch.ones(64), torch.ones(64)[:9]
    copy_kernel[(1,)](x[:9], y, 9, BLOCK=16, MASK_LOAD=True, MASK_STORE=True)
    with pytest.raises(InterpreterError, match=f"{'store' if load else 'load'} out of bounds: 7 of 16 addresses"):
        copy_kernel[(1,)](x[:9], y, 9, BLOCK=16, MASK_LOAD=load, MASK_STORE=store)


def test_unmasked_access_out_of_bounds():
    with pytest.raises(InterpreterError, match="load out of bounds"):
        scalar_kernel[(1,)](torch.ones(1), torch.ones(1))


def test_overflow():
    x, y = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    offset_kernel[(3,)](x, y, 2**30 - 1)
    assert y.item() == 2**31 - 2
    with pytest.raises(InterpreterError, match="int32 overflow detected for operation mul"):
        offset_kernel[(3,)](x, y, 2**30)


def test_bfloat16():
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="bfloat16"):
        copy_kernel[(1,)](x, x, 16, BLOCK=16, MASK_LOAD=True, MASK_STORE=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: torch.empty(9, **kw),
        lambda **kw: torch.empty_like(torch.ones(9), **kw),
        lambda **kw: torch.empty_strided((9,), (1,), **kw),
        lambda **kw: torch.ones(9).new_empty(9, **kw),
        lambda **kw: torch.ones(9).new_empty_strided((9,), (1,), **kw),
    ],
)
def test_what_is_not_written_is_poison(make):
    y = make(dtype=torch.float16)
    copy_kernel[(1,)](torch.ones(5, dtype=torch.float16), y, 5, BLOCK=16, MASK_LOAD=True, MASK_STORE=True)
    assert y[:5].eq(1).all() and y[5:].isnan().all()
    assert make(dtype=torch.int32).eq(-(2**31)).all()


def dot(x, y, transposed=False):
    """(…, M, K) times (…, K, N)."""
    z = torch.empty(*x.shape[:-1], y.shape[-1], dtype=torch.float32 if x.is_floating_point() else torch.int32)
    sizes = {"M": x.shape[-2], "N": y.shape[-1], "K": x.shape[-1]}
    if x.ndim == 3:
        batched_dot_kernel[(1,)](x.contiguous(), y.contiguous(), z, B=len(x), **sizes)
    else:
        y = y.T.contiguous() if transposed else y.contiguous()
        dot_kernel[(1,)](x.contiguous(), y, z, **sizes, TRANSPOSED=transposed)
    return z


DOT_DTYPES = [torch.float32, torch.float16, torch.float8_e5m2, torch.int8]


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_elements_of_a_product_depend_on_their_row_and_column_alone(dtype):
    """Not on where these stand, on those beside them, nor on strides. One rounding away from the float64 product."""
    generator = torch.Generator().manual_seed(0)
    x, y = (10 * torch.randn(shape, generator=generator) for shape in ((128, 64), (64, 128)))
    x, y = x.to(dtype), y.to(dtype)
    whole, truth, most = dot(x, y), x.double() @ y.double(), x.double().abs() @ y.double().abs()
    once = 0 if dtype == torch.int8 else torch.finfo(torch.float32).eps / 2 * truth.abs() + 64 * 2**-52 * most
    assert ((whole.double() - truth).abs() <= once).all()
    for transposed, m, n in itertools.product((False, True), (16, 32, 64), (16, 32, 64, 128)):
        for i, j in ((0, 0), (7, 0), (128 - m, 128 - n)):
            rows, columns = slice(i, i + m), slice(j, j + n)
            assert torch.equal(dot(x[rows], y[:, columns], transposed), whole[rows, columns]), (transposed, m, n, i, j)
    batch = dot(x.view(2, 64, 64), y.view(64, 2, 64).transpose(0, 1))
    assert torch.equal(batch, torch.stack([whole[:64, :64], whole[64:, 64:]]))
