"""xLSTM's matrix memory, some tokens at a time, against its definition, one token after the other."""

import pytest
import torch

from lrp_fast import ops, reference


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize(("length", "spread"), [(1, 1), (64, 1), (65, 8), (150, 3), (150, 100)])
def test_chunks_give_what_tokens_give(length, spread, rule):
    torch.manual_seed(length)
    query, key, value = (torch.randn(2, 3, length, width, dtype=torch.float64) for width in (5, 5, 7))
    take, keep = (spread * torch.randn(2, 3, length, dtype=torch.float64) for _ in range(2))
    leaves = [one.clone().requires_grad_() for one in (query, key, value, take, keep)]
    out, truth = ops.mlstm(*leaves, rule=rule), reference.mlstm(query, key, value, take, keep)
    assert (out - truth).abs().max() <= 1e-11 * truth.abs().max()
    g = torch.randn_like(truth)
    expected = reference.mlstm_backward(g, query, key, value, take, keep, rule=rule)
    found = torch.autograd.grad(out, leaves, g, materialize_grads=True, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-10 * max(other.abs().max(), 1)
