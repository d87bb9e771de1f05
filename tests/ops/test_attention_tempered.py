"""ops.attention under gim, whose softmax goes back at another temperature, against the dense definition."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops, reference


def make(queries, keys, kv_heads, dtype=torch.float64):
    torch.manual_seed(0)
    query = torch.randn(2, queries, 4, 8).transpose(1, 2)
    sizes = (2, kv_heads, keys, 8)
    return [one.to(dtype) for one in (query, torch.randn(sizes), torch.randn(sizes), torch.randn(2, 4, queries, 8))]


def run(query, key, value, g, **given):
    leaves = [one.detach().requires_grad_() for one in (query, key, value)]
    out = ops.attention(*leaves, rule="gim", **given)
    return out.detach(), torch.autograd.grad(out, leaves, g)


def apart(found, truth):
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_equals_the_definition_in_float64(softcap, with_sinks):
    sinks = torch.linspace(-1, 1, 4, dtype=torch.float64) if with_sinks else None
    for causal, window, chunk, queries, kv_heads in itertools.product(
        (True, False), (None, 3), (None, 5), (7, 11), (2, 4)
    ):
        if chunk is not None and queries < 11:
            continue
        query, key, value, g = make(queries, 11, kv_heads)
        bounds = torch.tensor([[0, 8], [2, 11]]) if queries == 11 else None
        reach = {"causal": causal, "window": window, "chunk": chunk, "bounds": bounds}
        shared = {"scale": 0.4, "softcap": softcap, "sinks": sinks}
        out, grads = run(query, key, value, g, **reach, **shared)
        mask = reference.visible(2, queries, 11, **reach)
        assert apart(out, reference.attention(query, key, value, mask, **shared)) <= 1e-12
        truth = reference.attention_backward(g, query, key, value, mask, rule="gim", **shared)
        assert max(map(apart, grads, truth)) <= 1e-10, reach


def test_the_definition_is_autograds_of_a_softmax_of_half_the_scores():
    """By hand: P is softmax(s), and what comes back to s passes the Jacobian of softmax at s / 2."""
    query, key, value, g = (one[:, :2] for one in make(5, 5, 4))
    mask = reference.visible(2, 5, 5)
    grads = reference.attention_backward(g, query, key, value, mask, scale=0.4, rule="gim")
    scores = (query @ key.mT * 0.4).masked_fill(~mask, -torch.inf)
    g_weights = g @ value.mT / 2
    half = (scores / 2).requires_grad_()
    (g_scores,) = torch.autograd.grad(half.softmax(-1), half, g_weights)
    assert apart(grads[0], g_scores @ key * 0.4 / 2) <= 1e-12
    assert apart(grads[1], g_scores.mT @ query * 0.4 / 2) <= 1e-12
    assert apart(grads[2], scores.softmax(-1).mT @ g / 2) <= 1e-12


def test_the_output_keeps_its_bits_and_needs_no_second_attention_without_gradients():
    query, key, value, _ = make(11, 11, 2, torch.float32)
    plain = ops.attention(query, key, value)
    assert torch.equal(ops.attention(query, key, value, rule="gim"), plain)
    leaf = query.requires_grad_()
    assert torch.equal(ops.attention(leaf, key, value, rule="gim").detach(), plain)


def test_what_was_kept_is_taken():
    given = make(11, 11, 2)
    kept = ops.attention_forward(*given[:3], rule="gim")
    _, grads = run(*given, kept=kept)
    _, again = run(*given)
    assert all(map(torch.equal, grads, again))


def test_chosen_keys():
    query, key, value, g = make(11, 11, 2)
    chosen = torch.randint(0, 11, (2, 1, 11, 6), generator=torch.manual_seed(1))
    chosen[..., 0] = 0
    mask = reference.among(reference.visible(2, 11, 11), chosen)
    _, grads = run(query, key, value, g, chosen=chosen, scale=0.4)
    truth = reference.attention_backward(g, query, key, value, mask, scale=0.4, rule="gim")
    assert max(map(apart, grads, truth)) <= 1e-10


@pytest.mark.parametrize("more", [{"tolerance": 0.1}, {"traces": []}])
def test_what_it_does_not_take_is_refused(more):
    with pytest.raises(ValueError, match="gim takes neither traces nor a tolerance"):
        run(*make(11, 11, 2), **more)


@pytest.mark.parametrize("stabiliser", ["attention_epsilon", "attention_gamma"])
def test_stabilisers_of_the_attention_are_refused(stabiliser):
    with pytest.raises(ValueError, match="gim has no stabilisers of the attention"):
        Rules("gim", **{stabiliser: 0.1})
    assert Rules("gim", epsilon=0.1, gamma=0.1).gamma == 0.1
