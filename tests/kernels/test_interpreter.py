"""The strict interpreter catches what it is there for: each kernel here is broken on purpose."""

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
