"""Edges of scans in closed form, against one backward pass for each token."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lrp_fast import ops, reference
from lrp_fast.rules import Rules

TOKENS, HEADS, LAGS = 131, 4, 3  # in three blocks


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def faded(value, query, key, decay, size, skip):
    """The definition, token by token: (1, T, H, V)."""
    each = value.shape[2] // query.shape[2]
    query, key = (one.repeat_interleave(each, 2) for one in (query, key))
    state, out = 0, []
    for t in range(value.shape[1]):
        written = key[:, t].unsqueeze(-1) * (size[:, t, :, None] * value[:, t]).unsqueeze(-2)
        state = decay[:, t].exp().unsqueeze(-1) * state + written
        out.append((query[:, t].unsqueeze(-1) * state).sum(-2) + skip[:, None] * value[:, t])
    return torch.stack(out, 1)


def check(edges, truth, rows, allowed=1e-12):
    blocks = [rows[rows // 64 == block] for block in (rows // 64).unique()]
    for these in blocks:
        found = edges(these)
        assert (found - truth[these, : found.shape[1]]).abs().max() <= allowed * truth.abs().max()
        assert not truth[these, found.shape[1] :].any()


@pytest.mark.parametrize(("rows", "steep"), [(range(TOKENS), 0.1), ([0, 1, 5, 70, 128, 130], 30.0)])
@pytest.mark.parametrize(("values", "fades"), [(5, 1), (1, 6), (1, 1)])
def test_a_state_that_fades(draw, values, fades, steep, rows):
    value, g = draw(1, TOKENS, HEADS, values), draw(1, TOKENS, HEADS, values)
    query, key, decay = draw(1, TOKENS, 2, 6), draw(1, TOKENS, 2, 6), -draw(1, TOKENS, HEADS, fades).abs() * steep
    size, skip, part = draw(1, TOKENS, HEADS), draw(HEADS), draw(LAGS, 1, TOKENS, HEADS, values)
    size[:, 3] = 0

    def backward(only):
        leaf = value.clone().requires_grad_()
        return torch.autograd.grad(faded(leaf, query, key, decay, size, skip), leaf, only)

    truth = reference.scan_edges(backward, g, (part,))
    given = [one[0] for one in (query, key, decay, size)]
    check(ops.decayed_edges(g[0], part[:, 0], *given, skip), truth, torch.tensor([*rows]))


def test_a_convolution(draw):
    value, g, weight, part = draw(1, 9, TOKENS), draw(1, TOKENS, 9, 1), draw(9, 4), draw(LAGS, 1, TOKENS, 9, 1)

    def backward(only):
        leaf = value.clone().requires_grad_()
        out = F.conv1d(F.pad(leaf, (3, 0)), weight.unsqueeze(1), groups=9)
        return (torch.autograd.grad(out, leaf, only[..., 0].mT)[0].mT.unsqueeze(-1),)

    truth = reference.scan_edges(backward, g, (part,))
    check(ops.convolved_edges(g[0], part[:, 0], weight), truth, torch.arange(TOKENS))


@pytest.mark.parametrize(("rule", "steep"), [("attnlrp", 0.1), ("cp", 30.0), ("gradient", 1.0)])
def test_the_gated_delta_rule(draw, rule, steep):
    query, key = (F.normalize(draw(1, TOKENS, HEADS, 7), dim=-1) for _ in range(2))
    value, g = draw(1, TOKENS, HEADS, 5), draw(1, TOKENS, HEADS, 5)
    decay, beta = -draw(1, TOKENS, HEADS).abs() * steep, draw(1, TOKENS, HEADS).sigmoid()
    given = (value, query, key, decay, beta)
    parts = tuple(draw(LAGS, *one.shape) for one in given)

    def backward(only):
        q, k, v, *rest = reference.gated_delta_rule_backward(only, query, key, value, decay, beta, rule=rule)
        return v, q, k, *rest

    truth = reference.scan_edges(backward, g, parts)
    shares = Rules(rule).treatment
    back, given, parts = ([one[0] for one in backward(g)], [one[0] for one in given], [one[:, 0] for one in parts])
    form = partial(ops.delta_edges, value_share=shares.value, score_share=shares.score)
    check(form(g[0], given, back, parts), truth, torch.tensor([0, 3, 63, 64, 65, 100, 127, 128, 130]), 1e-11)


def test_several_places_where_tokens_meet_add_up(draw):
    """Chosen as from the sum of their dense edges, and columns sum to what arrives at each position."""
    value, g, weight = draw(1, TOKENS, 9, 1), draw(1, TOKENS, 9, 1), draw(9, 4)
    query, key, others = (draw(1, HEADS, TOKENS, 8) for _ in range(3))
    part, of_key, of_value = draw(LAGS, 1, TOKENS, 9, 1), draw(*key.shape), draw(*key.shape)
    traces, scans = [], []

    def run(x):
        return F.conv1d(F.pad(x[..., 0].mT, (3, 0)), weight.unsqueeze(1), groups=9).mT.unsqueeze(-1)

    def form(u, given, back, parts):
        return ops.convolved_edges(u, parts[0], weight)

    leaves = [one.requires_grad_() for one in (value, query, key, others)]
    out = ops.mixed(run, form, leaves[0], traces=scans)
    torch.autograd.grad(out, leaves[0], g)
    read = ops.attention(*leaves[1:], traces=traces)
    torch.autograd.grad(read, leaves[1:], draw(*read.shape))
    mixings = [ops.Mixing(traces[0], (of_key, of_value)), ops.Mixing(scans[0], (part,))]
    rows = torch.arange(TOKENS)
    alone = [ops.layer_edges([one], rows, topk=TOKENS) for one in mixings]
    dense = sum(_dense(one) for one in alone)
    both = ops.layer_edges(mixings, rows, topk=TOKENS)
    assert (_dense(both) - dense).abs().max() <= 1e-13 * dense.abs().max()
    arrived = ops.layer_crossing(mixings)
    assert (dense.sum(0) - arrived).abs().max() <= 1e-12 * arrived.abs().max()
    few = ops.layer_edges(mixings, rows, topk=3)
    best = dense.abs().topk(3).values.sum(-1)[2:]
    assert (_dense(few).abs().sum(-1)[2:] - best).abs().max() <= 1e-12 * best.max()
    share = ops.layer_edges(mixings, rows, mass=0.5)
    assert share.weights.abs().sum() >= 0.5 * dense.abs().sum() > share.weights.abs().sum() - share.weights.abs().min()
    with pytest.raises(ValueError, match="give one of topk= and mass="):
        ops.layer_edges(mixings, rows)


def _dense(selected):
    found = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(TOKENS), selected.counts)
    found[rows, selected.columns.long()] = selected.weights
    return found
