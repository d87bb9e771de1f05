"""ops.attention where queries read some keys behind them, and its edges, against the dense definition."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops, reference
from lrp_fast.ops import attention_tiled, edges
from tests.ops.test_attention import define, gap, make, run

LENGTH = 23


def until(*runs, batch=2):
    """Of runs of tokens (start, end) that read each other."""
    found = torch.arange(1, LENGTH + 1).repeat(batch, 1)
    for row, start, end in runs:
        found[row, start:end] = end
    return found


BLOCKS = until((0, 2, 7), (0, 12, 20), (1, 0, 4), (1, 4, 5), (1, 21, 23))


@pytest.mark.parametrize("epsilon, gamma", [(0.0, 0.0), (0.01, 0.3)])
@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient", "gim"])
@pytest.mark.parametrize("rows", [3, 64])
def test_equals_the_definition_in_float64(rule, epsilon, gamma, rows, monkeypatch):
    if rule == "gim" and epsilon:
        pytest.skip("GIM has no stabilised attention")
    monkeypatch.setattr(attention_tiled, "_MOST_ROWS", rows)
    rules = Rules(rule, attention_epsilon=epsilon, attention_gamma=gamma)
    real = torch.tensor([[0, 18], [2, 23]])
    for window, softcap, bounds in itertools.product((None, 3, 9), (None, 5.0), (None, real)):
        tensors = make(LENGTH, LENGTH, 4, 2, torch.float64)
        flags = {"window": window, "softcap": softcap, "bounds": bounds, "until": BLOCKS}
        out, grads = run(*tensors, rule=rules, **flags)
        truth, expected = define(*tensors, rules, **flags)
        assert gap(out, truth) <= 1e-10, flags
        for one, other in zip(grads, expected, strict=True):
            assert gap(one, other) <= 1e-10, flags


def test_each_reading_itself_alone_is_causal():
    tensors, plain = make(LENGTH, LENGTH, 4, 2, torch.float64), until()
    for window in (None, 5):
        (out, grads), (truth, expected) = (run(*tensors, window=window, **more) for more in ({"until": plain}, {}))
        assert max(gap(a, b) for a, b in zip((out, *grads), (truth, *expected), strict=True)) <= 1e-12


def test_with_what_was_kept_or_a_tolerance_it_is_the_same():
    tensors, dropped = make(LENGTH, LENGTH, 4, 2, torch.float64), []
    kept = ops.attention_forward(*tensors[:3], scale=0.4, until=BLOCKS)
    once = run(*tensors, until=BLOCKS)
    again = run(*tensors, until=BLOCKS, kept=kept, tolerance=0.3, dropped=dropped)
    assert torch.equal(once[0], again[0]) and not dropped[0].any()
    assert all(gap(a, b) <= 1e-12 for a, b in zip(once[1], again[1], strict=True))


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("window", [None, 4])
def test_edges_are_those_of_the_keys_that_are_read(rule, window):
    query, key, value, g = make(LENGTH, LENGTH, 4, 2, torch.float64)
    leaves, traces = [t.detach().requires_grad_() for t in (query, key, value)], []
    flags = {"scale": 0.4, "rule": rule}
    out = ops.attention(*leaves, **flags, window=window, until=BLOCKS, traces=traces)
    torch.autograd.grad(out, leaves, g, allow_unused=True)
    mask = reference.visible(2, LENGTH, LENGTH, window=window, until=BLOCKS)
    for prompt in range(2):
        one = slice(prompt, prompt + 1)
        given = (t[one] for t in (g, query, key, value, mask, key, value))
        truth = reference.attention_edges(*given, **flags)[0]
        trace = traces[0].of(prompt, 0, LENGTH)
        found = torch.zeros_like(truth)
        for position, keys, entries in edges.edge_tiles(trace, torch.arange(LENGTH)):
            found[position, keys] = entries
        assert gap(found, truth) <= 1e-12 and truth.triu(1).any()
        assert gap(ops.crossing(trace), truth.sum(0)) <= 1e-12
        chosen = ops.attention_edges(trace, torch.arange(LENGTH), topk=LENGTH)
        assert torch.equal(chosen.columns.sort().values, truth.nonzero()[:, 1].to(chosen.columns.dtype).sort().values)


def test_what_is_refused():
    query, key, value, _ = make(LENGTH, LENGTH, 4, 2, torch.float64)
    for more in ({"causal": False}, {"chunk": 4}):
        with pytest.raises(ValueError, match="^until is .B, S., of as many queries as keys, causal and without chunks"):
            ops.attention(query, key, value, until=BLOCKS, **more)
    with pytest.raises(ValueError, match="^until is"):
        ops.attention(query[:, :, :5], key, value, until=BLOCKS)
    with pytest.raises(ValueError, match="^until must let each query read itself"):
        ops.attention(query, key, value, until=BLOCKS - 1)
    with pytest.raises(ValueError, match="^keys behind a query are read in plain PyTorch, not by 'vendor'"):
        ops.attention(query, key, value, until=BLOCKS, impl="vendor")
