"""ops.rotary against its definition, and in the bits of transformers' own code, forward and back."""

import pytest
import torch
from torch.autograd import forward_ad
from transformers.models.llama.modeling_llama import rotate_half

from lrp_fast import ops, reference


def own(x, cos, sin):
    return x * cos + rotate_half(x) * sin


def given(dtype, table=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64, generator=generator).to(dtype).transpose(1, 2)
    cos, sin = torch.randn(2, 2, 1, 7, 8, dtype=torch.float64, generator=generator).to(table or dtype)
    g = torch.randn(2, 3, 7, 8, dtype=torch.float64, generator=generator).to(table or dtype)
    return x.requires_grad_(), cos, sin, g


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_same_bits_forward_and_back(dtype):
    x, cos, sin, g = given(dtype)
    found, truth = ops.rotary(x, cos, sin), own(x, cos, sin)
    assert torch.equal(found, truth)
    assert torch.equal(found, reference.rotary(x, cos, sin))
    back = torch.autograd.grad(found, x, g)[0]
    assert torch.equal(back, torch.autograd.grad(truth, x, g)[0])
    assert torch.equal(back, reference.rotary_backward(g, cos, sin))


def test_of_a_wider_table_the_gradient_is_rounded_once():
    x, cos, sin, g = given(torch.bfloat16, torch.float32)
    found = ops.rotary(x, cos, sin)
    assert torch.equal(found, own(x, cos, sin))
    assert torch.equal(torch.autograd.grad(found, x, g)[0], reference.rotary_backward(g, cos, sin).to(torch.bfloat16))


def test_forward_derivatives_are_those_of_its_formula():
    x, cos, sin, tangent = given(torch.float64)
    with forward_ad.dual_level():
        dual = ops.rotary(forward_ad.make_dual(x, tangent), cos, sin)
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, own(tangent, cos, sin))
