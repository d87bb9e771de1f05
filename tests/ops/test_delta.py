"""The gated delta rule, some tokens at a time, against its definition, one token after the other."""

import pytest
import torch

from lrp_fast import ops, reference


def given(length, per_channel, strongest=4.0, dtype=torch.float64):
    """Queries and keys of unit length, values, decays and betas of 2 prompts and 3 heads."""
    generator = torch.Generator().manual_seed(length)

    def drawn(*shape):
        return torch.randn(2, length, 3, *shape, generator=generator, dtype=torch.float64)

    query, key = (one / one.norm(dim=-1, keepdim=True) for one in (drawn(5), drawn(5)))
    decay = drawn(5) if per_channel else drawn()
    tensors = (query, key, drawn(7), -strongest * decay.sigmoid() ** 3, drawn().sigmoid())
    return [one.to(dtype) for one in tensors]


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("length", [1, 63, 64, 111, 1100])
def test_chunks_give_what_tokens_give(length, per_channel, rule):
    tensors = given(length, per_channel)
    leaves = [one.clone().requires_grad_() for one in tensors]
    out = ops.gated_delta_rule(*leaves, rule=rule)
    truth = reference.gated_delta_rule(*tensors)
    assert (out - truth).abs().max() <= 1e-12 * truth.abs().max()
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = reference.gated_delta_rule_backward(g, *tensors, rule=rule)
    for again in (True, False):  # targets come one after the other
        given_back = {"retain_graph": again, "materialize_grads": True, "allow_unused": True}
        for one, other in zip(torch.autograd.grad(out, leaves, g, **given_back), expected, strict=True):
            assert (one - other).abs().max() <= 1e-12 * max(other.abs().max(), 1)


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_decays_at_once_overflows_nowhere(per_channel):
    """exp(-sum of decays), of a chunk, is far beyond float32."""
    tensors = given(111, per_channel, strongest=300.0, dtype=torch.float32)
    leaves = [one.clone().requires_grad_() for one in tensors]
    out = ops.gated_delta_rule(*leaves)
    truth = reference.gated_delta_rule(*(one.double() for one in tensors))
    assert (out - truth).abs().max() <= 1e-4 * truth.abs().max()
    g = torch.ones_like(out)
    expected = reference.gated_delta_rule_backward(g.double(), *(one.double() for one in tensors))
    for one, other in zip(torch.autograd.grad(out, leaves, g), expected, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


def test_values_conserve_relevance_under_cp():
    tensors = given(70, True)
    value = tensors[2].clone().requires_grad_()
    out = ops.gated_delta_rule(*tensors[:2], value, *tensors[3:], rule="cp")
    (g,) = torch.autograd.grad(out.sum(), value)
    assert torch.isclose((value * g).sum(), out.sum(), rtol=1e-12)
