"""ops.attention over chosen keys, and its edges, against the dense definition."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops, reference
from tests.ops.test_attention import STABILISERS, gap, make, run

TOKENS, HEADS, OF_KEYS = 23, 4, 2


def choose(block: int, groups: int, count: int, batch: int = 2) -> torch.Tensor:
    """(B, G, T, count): its own block, and others at random."""
    torch.manual_seed(1)
    blocks = -(-TOKENS // block)
    order = torch.rand(batch, groups, TOKENS, blocks)
    order.scatter_(-1, (torch.arange(TOKENS) // block)[None, None, :, None].expand(batch, groups, -1, 1), 2.0)
    return order.topk(count, -1).indices.to(torch.int32)


def define(query, key, value, g, rules, chosen, block, *, bounds=None, window=None, softcap=None):
    mask = reference.visible(len(query), TOKENS, TOKENS, bounds=bounds, window=window)
    mask = reference.among(mask, chosen, block)
    if mask.shape[1] > 1:
        mask = mask.repeat_interleave(HEADS // OF_KEYS, 1)
    flags = {"scale": 0.4, "softcap": softcap}
    out = reference.attention(query, key, value, mask, **flags)
    stabilisers = {"epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma}
    return out, reference.attention_backward(g, query, key, value, mask, **flags, rule=rules.name, **stabilisers)


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("epsilon, gamma", STABILISERS)
def test_equals_the_definition_in_float64(rule, epsilon, gamma):
    rules = Rules(rule, attention_epsilon=epsilon, attention_gamma=gamma)
    for block, groups, padded, window, softcap in itertools.product((1, 4), (1, OF_KEYS), (0, 1), (None, 9), (None, 5)):
        tensors, chosen = make(TOKENS, TOKENS, HEADS, OF_KEYS, torch.float64), choose(block, groups, 3)
        flags = {"window": window, "softcap": softcap}
        flags["bounds"] = torch.tensor([[0, 19], [2, TOKENS]]) if padded else None
        out, grads = run(*tensors, rule=rules, chosen=chosen, block=block, **flags)
        truth, expected = define(*tensors, rules, chosen, block, **flags)
        assert gap(out, truth) <= 1e-10, flags
        for one, other in zip(grads, expected, strict=True):
            assert gap(one, other) <= 1e-10, flags


@pytest.mark.parametrize("block, groups", [(1, 1), (4, OF_KEYS)])
def test_a_bounded_pass_leaves_nothing_out_and_kept_choices_are_made_again(block, groups):
    tensors, chosen, dropped = make(TOKENS, TOKENS, HEADS, OF_KEYS, torch.float64), choose(block, groups, 3), []
    given = {"scale": 0.4, "block": block}
    kept = ops.attention_forward(*tensors[:3], chosen=lambda: chosen, **given)
    assert torch.equal(kept.chosen, chosen)
    once = run(*tensors, block=block, chosen=chosen)
    again = run(*tensors, block=block, kept=kept, tolerance=0.5, dropped=dropped)
    assert max(gap(one, other) for one, other in zip(once[1], again[1], strict=True)) <= 1e-12
    assert not dropped[0].any()


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("block, groups", [(1, 1), (4, OF_KEYS)])
def test_edges_are_those_of_the_chosen_keys(rule, block, groups):
    """Of each prompt of a batch, a padded one cut to its own tokens; summed, they are what arrives at each key."""
    query, key, value, g = make(TOKENS, TOKENS, HEADS, OF_KEYS, torch.float64)
    chosen, traces, length = choose(block, groups, 3), [], 18
    g[1, :, length:] = 0
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.attention(*leaves, scale=0.4, rule=rule, chosen=chosen, block=block, traces=traces)
    torch.autograd.grad(out, leaves, g, allow_unused=True)
    for prompt, tokens in ((0, TOKENS), (1, length)):
        trace = traces[0].of(prompt, 0, tokens)
        found = ops.attention_edges(trace, torch.arange(tokens), topk=tokens)
        dense = torch.zeros(tokens, tokens, dtype=torch.float64)
        row = torch.repeat_interleave(torch.arange(tokens), found.counts)
        dense[row, found.columns.long()] = found.weights
        assert (dense.sum(0) - ops.crossing(trace)).abs().max() <= 1e-12
        mask = reference.among(reference.visible(2, TOKENS, TOKENS), chosen, block).any(1)[prompt, :tokens, :tokens]
        assert not dense[~mask].any()
        assert dense[mask].all()


def test_what_does_not_fit_is_refused():
    query, key, value, _ = make(TOKENS, TOKENS, HEADS, OF_KEYS, torch.float64)
    with pytest.raises(ValueError, match="chosen keys are"):
        ops.attention(query[:, :, :5], key, value, chosen=choose(1, 1, 3))
    with pytest.raises(ValueError, match="chosen keys are"):
        ops.attention(query, key, value, chosen=choose(1, 3, 3))
    with pytest.raises(ValueError, match="in plain PyTorch"):
        ops.attention(query, key, value, chosen=choose(1, 1, 3), impl="vendor")
