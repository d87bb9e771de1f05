"""RWKV's weighted mean by recurrences against its definition, all weights of a token at a time."""

import pytest
import torch

from lrp_fast import ops, reference


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize(("length", "spread"), [(1, 1), (2, 1), (65, 1), (100, 200)])
def test_recurrences_give_what_means_give(length, spread, rule):
    torch.manual_seed(length)
    key, value = (torch.randn(2, length, 5, dtype=torch.float64) for _ in range(2))
    key = key * spread  # exponentials of such keys are beyond float64
    fading, first = torch.rand(5, dtype=torch.float64) * 3, torch.randn(5, dtype=torch.float64)
    leaves = [key.clone().requires_grad_(), value.clone().requires_grad_()]
    out, truth = ops.wkv(*leaves, fading, first, rule=rule), reference.wkv(key, value, fading, first)
    assert (out - truth).abs().max() <= 1e-12 * truth.abs().max()
    g = torch.randn_like(truth)
    expected = reference.wkv_backward(g, key, value, fading, first, rule=rule)
    found = torch.autograd.grad(out, leaves, g, materialize_grads=True, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-11 * max(other.abs().max(), 1)


def test_long_prompts_in_float32():
    torch.manual_seed(0)
    key, value = torch.randn(1, 3000, 4), torch.randn(1, 3000, 4)
    fading, first = torch.tensor([1e-3, 0.1, 3.0, 20.0]), torch.zeros(4)
    truth = reference.wkv(*(one.double() for one in (key, value, fading, first)))
    assert (ops.wkv(key, value, fading, first) - truth).abs().max() <= 1e-5
