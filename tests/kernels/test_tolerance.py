"""ops.attention with a tolerance and impl="triton": leaves out what it says, from backward pass and edges alike."""

import pytest
import torch

from lrp_fast import Rules, ops, reference
from lrp_fast.ops import bounded
from lrp_fast.ops.backend import kernels, table
from tests.kernels.ways import EXECUTED

RULES = [Rules("attnlrp"), Rules("cp"), Rules("attnlrp", attention_epsilon=0.01, attention_gamma=0.3)]
pytestmark = pytest.mark.skipif(EXECUTED, reason="float32 is slow there; test_bounded.py executes the kernels")


@pytest.fixture(autouse=True)
def whatever_it_saves(monkeypatch):
    monkeypatch.setattr(bounded, "worth", lambda scores: 1.0)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: f"{rules.name} {rules.attention_gamma}")
@pytest.mark.parametrize("flags", [{}, {"window": 90, "softcap": 2.0}], ids=str)
def test_is_the_definition_less_what_it_says_it_left_out(rules, flags, device):
    generator = torch.Generator().manual_seed(0)
    queries, keys, batch = 200, 230, 2
    shapes = [(2, queries), (1, keys), (1, keys), (2, queries)]
    query, key, value, g = (torch.randn(batch, *shape, 16, generator=generator) for shape in shapes)
    query, g = 3 * query, g * torch.logspace(-3, 0, queries)[:, None]
    leaves = [t.to(device).requires_grad_() for t in (query, key, value)]
    dropped = []
    out = ops.attention(*leaves, rule=rules, scale=0.3, tolerance=0.3, dropped=dropped, impl="triton", **flags)
    found = torch.autograd.grad(out, leaves, g.to(device), allow_unused=True)

    mask = reference.visible(batch, queries, keys, window=flags.get("window"))
    exact = [t.double() for t in (g, query, key, value)]
    given = {"scale": 0.3, "softcap": flags.get("softcap")}
    given |= {"epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma}
    entries = reference.attention_mass(*exact, mask, **given)
    rows, columns = kernels("attention").unit(query, rules.attention_gamma > 0, "softcap" in flags, table(query))
    padded = torch.nn.functional.pad(entries, (0, -keys % columns, 0, -queries % rows))
    masses = padded.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).sum((3, 5))
    kept = torch.stack([bounded.choose(one.float(), 0.3).kept for one in masses])
    assert not kept.all()
    lost = 1 - (masses * kept).sum((1, 2, 3)) / masses.sum((1, 2, 3))
    assert torch.allclose(dropped[0], lost, rtol=0, atol=1e-5)
    assert (dropped[0] > 0.05).all()
    whole = kept.repeat_interleave(rows, 2).repeat_interleave(columns, 3)[:, :, :queries, :keys]
    truth = reference.attention_backward(*exact, mask, rule=rules.name, kept=whole, **given)
    for one, other in zip(found, truth, strict=True):
        if one is not None:
            torch.testing.assert_close(one.cpu().double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_edges_are_those_of_the_tiles_that_stayed(impl, device):
    """By the kernels, and by PyTorch of what the kernels chose."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, g = (torch.randn(1, heads, 200, 16, generator=generator) for heads in (2, 1, 1, 2))
    leaves = [t.to(device).requires_grad_() for t in (3 * query, key, value)]
    traces, dropped = [], []
    out = ops.attention(*leaves, scale=0.3, tolerance=0.3, dropped=dropped, traces=traces, impl="triton")
    torch.autograd.grad(out, leaves, (g * torch.logspace(-3, 0, 200)[:, None]).to(device))
    assert dropped[0] > 0.05
    rows = torch.arange(200, device=device)
    crossing = ops.crossing(traces[0]).cpu()
    for how in ({"topk": 200}, {"topk": 16}, {"mass": 1.0}):
        found = ops.attention_edges(traces[0], rows, impl=impl, **how)
        sums = torch.zeros(200).index_add(0, found.columns.long(), found.weights)
        if how != {"topk": 16}:
            torch.testing.assert_close(sums, crossing, rtol=1e-4, atol=1e-4 * crossing.abs().max().item())
        else:  # with what was left out of the list, each row is the same
            every = ops.attention_edges(traces[0], rows, topk=200, impl=impl)
            whole = torch.stack([one.sum() for one in every.weights.split(every.counts.tolist())])
            some = torch.stack([one.sum() for one in found.weights.split(found.counts.tolist())])
            torch.testing.assert_close(some + found.dropped.sum(-1), whole, rtol=1e-4, atol=1e-5)
