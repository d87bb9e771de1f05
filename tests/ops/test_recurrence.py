"""A linear recurrence in chunks against its definition, one token after the other."""

import pytest
import torch

from lrp_fast import ops, reference


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_chunks_give_what_tokens_give(length, rule):
    torch.manual_seed(length)
    value, kept = torch.randn(2, length, 5, dtype=torch.float64), torch.rand(2, length, 5, dtype=torch.float64)
    kept = kept**0.1
    kept[0, length // 2] = 0
    leaves = [one.clone().requires_grad_() for one in (value, kept)]
    out, truth = ops.recurrence(*leaves, rule=rule), reference.recurrence(value, kept)
    assert (out - truth).abs().max() <= 1e-13 * truth.abs().max()
    g = torch.randn_like(truth)
    expected = reference.recurrence_backward(g, value, kept, rule=rule)
    for one, other in zip(torch.autograd.grad(out, leaves, g, allow_unused=True), expected, strict=True):
        assert one is other is None or (one - other).abs().max() <= 1e-12 * max(other.abs().max(), 1)
    if length <= 64:
        assert torch.equal(out, truth)
