"""Lightning attention, some tokens at a time, against its definition, one token after the other."""

import pytest
import torch

from lrp_fast import ops, reference


def fading(slope, size):
    """The tables of blocks of ``size`` tokens."""
    at = torch.arange(size, dtype=slope.dtype)
    slope = slope[:, None, None]
    past = torch.exp(-slope * (at[:, None] - at).clamp(min=0)).tril()
    return ops.Fading(slope, torch.exp(-slope * (at[:, None] + 1)), torch.exp(-slope * (size - 1 - at[:, None])), past)


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("length", [1, 4, 5, 11])
def test_blocks_give_what_tokens_give(length, rule):
    torch.manual_seed(length)
    query, key, value = (torch.randn(2, 3, length, width, dtype=torch.float64) for width in (5, 5, 7))
    slope = torch.tensor([0.02, 0.5, 3.0], dtype=torch.float64)
    leaves = [one.clone().requires_grad_() for one in (query, key, value)]
    out = ops.lightning_attention(*leaves, fading(slope, 4), rule=rule)
    truth = reference.lightning_attention(query, key, value, slope)
    assert (out - truth).abs().max() <= 1e-13 * truth.abs().max()
    g = torch.randn_like(truth)
    expected = reference.lightning_attention_backward(g, query, key, value, slope, rule=rule)
    found = torch.autograd.grad(out, leaves, g, materialize_grads=True, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-13 * max(other.abs().max(), 1)
