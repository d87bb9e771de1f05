"""ops.attention against the dense definition: every flag, every rule, both of its CPU forms."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops, reference
from lrp_fast.ops import attention_bounded, attention_flash, attention_tiled

STABILISERS = [(0.0, 0.0), (0.01, 0.0), (0.01, 0.3), (0.0, 0.3)]


def make(queries, keys, heads, kv_heads, dtype, dim=8, batch=2):
    torch.manual_seed(0)
    query = torch.randn(batch, queries, heads, dim).transpose(1, 2)  # strided, as transformers hands it over
    key = torch.randn(batch, keys, kv_heads, dim).transpose(1, 2)
    value = torch.randn(batch, kv_heads, keys, dim)
    g = torch.randn(batch, heads, queries, dim)
    return [t.to(dtype) for t in (query, key, value, g)]


def run(query, key, value, g, scale=0.4, **flags):
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.attention(*leaves, scale=scale, **flags)
    return out.detach(), torch.autograd.grad(out, leaves, g, allow_unused=True)


def define(query, key, value, g, rules, *, scale=0.4, softcap=None, sinks=None, **reach):
    mask = reference.visible(len(query), query.shape[2], key.shape[2], **reach)
    sinks = None if sinks is None else sinks.to(query.dtype)
    flags = {"scale": scale, "softcap": softcap, "sinks": sinks}
    out = reference.attention(query, key, value, mask, **flags)
    return out, reference.attention_backward(
        g, query, key, value, mask, **flags,
        rule=rules.name, epsilon=rules.attention_epsilon, gamma=rules.attention_gamma,
    )  # fmt: skip


def gap(found, truth):
    if found is None:  # a constant under this rule
        return 0.0 if not truth.any() else float("inf")
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("epsilon, gamma", STABILISERS)
def test_equals_the_definition_in_float64(rule, epsilon, gamma):
    rules = Rules(rule, attention_epsilon=epsilon, attention_gamma=gamma)
    for causal, window, softcap, with_sinks, queries, kv_heads in itertools.product(
        (True, False), (None, 3), (None, 5.0), (False, True), (1, 7, 11), (2, 4)
    ):
        tensors = make(queries, 11, 4, kv_heads, torch.float64)
        flags = {"causal": causal, "window": window, "softcap": softcap}
        flags["sinks"] = torch.linspace(-1, 1, 4, dtype=torch.float64) if with_sinks else None
        if queries == 11:
            flags["bounds"] = torch.tensor([[0, 8], [2, 11]])
        out, grads = run(*tensors, rule=rules, **flags)
        truth, expected = define(*tensors, rules, **flags)
        assert gap(out, truth) <= 1e-10, flags
        for one, other in zip(grads, expected, strict=True):
            assert gap(one, other) <= 1e-10, flags


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("epsilon, gamma", [(0.0, 0.0), (0.01, 0.3)])
@pytest.mark.parametrize("chunk", [1, 4, 5, 11, 12])
def test_chunks_equal_the_definition_in_float64(rule, epsilon, gamma, chunk):
    rules = Rules(rule, attention_epsilon=epsilon, attention_gamma=gamma)
    sinks = torch.linspace(-1, 1, 4, dtype=torch.float64)
    for flags in (
        {}, {"window": 3}, {"causal": False}, {"softcap": 5.0, "sinks": sinks},
        {"bounds": torch.tensor([[0, 8], [2, 11]])},
    ):  # fmt: skip
        tensors = make(11, 11, 4, 2, torch.float64)
        out, grads = run(*tensors, rule=rules, chunk=chunk, **flags)
        truth, expected = define(*tensors, rules, chunk=chunk, **flags)
        assert gap(out, truth) <= 1e-10, flags
        for one, other in zip(grads, expected, strict=True):
            assert gap(one, other) <= 1e-10, flags


def test_what_a_bounded_pass_over_chunks_leaves_out_is_within_the_tolerance(monkeypatch):
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)  # whatever it saves
    query, key, value, g = make(700, 700, 2, 1, torch.float64)
    g[:, :, 350:] *= 1e-6  # the chunks behind are no part of the others' choice
    dropped = []
    _, grads = run(query, key, value, g, chunk=350, tolerance=0.3, dropped=dropped)
    _, exact = run(query, key, value, g, chunk=350)
    assert len(dropped) == 1 and (dropped[0] > 0).all() and (dropped[0] <= 0.3).all()
    assert max(gap(one, other) for one, other in zip(grads, exact, strict=True)) > 1e-6


@pytest.mark.parametrize("scale", [0.0, -0.4])
@pytest.mark.parametrize("window", [None, 3])
def test_any_scale(scale, window):
    """PyTorch's kernels give NaN there: they scale what a mask has hidden, too."""
    tensors = make(11, 11, 4, 2, torch.float64)
    out, grads = run(*tensors, scale=scale, window=window)
    truth, expected = define(*tensors, Rules(), scale=scale, window=window)
    assert max(gap(a, b) for a, b in zip((out, *grads), (truth, *expected), strict=True)) <= 1e-10


@pytest.mark.parametrize("length, window", [(1, None), (63, None), (111, 17), (1300, 700), (1300, None)])
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_odd_lengths_and_windows_across_blocks(length, window, rule):
    tensors = make(length, length, 2, 1, torch.float64, batch=1)
    _, grads = run(*tensors, rule=rule, window=window)
    _, expected = define(*tensors, Rules(rule), window=window)
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("epsilon, gamma", STABILISERS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_rounds_no_worse_than_the_dense_form_in_float32(rule, epsilon, gamma, softcap, within_rounding):
    rules = Rules(rule, attention_epsilon=epsilon, attention_gamma=gamma)
    tensors = make(111, 111, 4, 2, torch.float32, dim=64, batch=1)
    flags = {"scale": 64**-0.5, "softcap": softcap}
    out, grads = run(*tensors, rule=rules, **flags)
    plain_out, plain = define(*tensors, rules, **flags)
    truth_out, truth = define(*(t.double() for t in tensors), rules, **flags)
    within_rounding(out, plain_out, truth_out, terms=111)
    for one, own, exact in zip(grads, plain, truth, strict=True):
        if one is not None:
            within_rounding(one, own, exact, terms=111 + 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_rounds_no_worse_than_the_dense_form_in_16_bits(dtype, rule, within_rounding):
    tensors = make(63, 63, 4, 2, dtype, dim=64, batch=1)
    out, grads = run(*tensors, rule=rule, scale=64**-0.5)
    plain_out, plain = define(*tensors, Rules(rule), scale=64**-0.5)
    truth_out, truth = define(*(t.double() for t in tensors), Rules(rule), scale=64**-0.5)
    within_rounding(out, plain_out, truth_out, terms=63)
    for one, own, exact in zip(grads, plain, truth, strict=True):
        if one is not None:
            within_rounding(one, own, exact, terms=63 + 64)


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_queries_without_relevance_are_skipped_exactly(rule, gamma, monkeypatch):
    query, key, value, g = make(111, 111, 4, 2, torch.float64, batch=1)
    g[:, :, [*range(77), *range(78, 111)]] = 0
    computed = []
    whole = attention_tiled.tiles
    monkeypatch.setattr(
        attention_tiled, "tiles", lambda *a: (computed.append(len(tile[2])) or tile for tile in whole(*a))
    )
    rules = Rules(rule, attention_gamma=gamma)
    _, grads = run(query, key, value, g, rule=rules)
    assert computed == [1]
    _, expected = define(query, key, value, g, rules)
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10


def test_the_scaled_gradient_goes_through_the_flash_kernels_and_only_that(monkeypatch):
    used = []
    for module in (attention_flash, attention_tiled):
        real = module.backward
        monkeypatch.setattr(
            module, "backward", lambda *a, m=module, f=real, **k: used.append(m.__name__[-5:]) or f(*a, **k)
        )
    tensors = make(11, 11, 4, 2, torch.float32)
    for rules in (Rules("attnlrp"), Rules("gradient"), Rules("attnlrp", attention_epsilon=0.1)):
        run(*tensors, rule=rules)
    assert used == ["flash"] * 3
    for rules in (Rules("cp"), Rules("attnlrp", attention_gamma=0.1)):
        run(*tensors, rule=rules)
    run(*tensors, softcap=3.0)
    assert used[3:] == ["tiled"] * 3


def test_forward_has_the_bits_of_sdpa():
    query, key, value, _ = make(300, 300, 4, 2, torch.float32, dim=64)
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.equal(ops.attention(query, key, value), plain)


def test_padding_gives_each_row_what_it_gives_alone():
    query, key, value, g = make(11, 11, 4, 2, torch.float32)
    bounds = torch.tensor([[0, 8], [2, 11]])
    out, grads = run(query, key, value, g, bounds=bounds)
    for row, (start, end) in enumerate(bounds.tolist()):
        alone_out, alone = run(*(t[row : row + 1, :, start:end] for t in (query, key, value, g)))
        assert torch.equal(out[row, :, start:end], alone_out[0])
        for one, other in zip(grads, alone, strict=True):
            assert torch.equal(one[row, :, start:end], other[0])
            assert not one[row, :, :start].any() and not one[row, :, end:].any()


def test_any_last_stride_and_expanded_gradients():
    tensors = make(11, 11, 4, 2, torch.float32)
    expected_out, expected = run(*tensors)
    for index in range(4):
        strange = list(tensors)
        strange[index] = strange[index].transpose(2, 3).contiguous().transpose(2, 3)
        out, grads = run(*strange)
        assert torch.equal(out, expected_out) and all(map(torch.equal, grads, expected))
    ones = torch.ones(()).expand(tensors[3].shape)
    _, expanded = run(*tensors[:3], ones)
    assert all(map(torch.equal, expanded, run(*tensors[:3], ones.contiguous())[1]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_grouped_heads_whatever_the_threads(threads, kv_heads, monkeypatch):
    monkeypatch.setattr(attention_flash, "_SHORT", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensors = make(11, 11, 9, kv_heads, torch.float64, batch=1)
        _, grads = run(*tensors)
    finally:
        torch.set_num_threads(before)
    _, expected = define(*tensors, Rules("attnlrp"))
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10


@pytest.mark.parametrize("window", [10, 11, 12])
def test_windows_about_as_long_as_the_context(window):
    tensors = make(11, 11, 4, 2, torch.float64)
    _, grads = run(*tensors, window=window)
    _, expected = define(*tensors, Rules("attnlrp"), window=window)
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10


def test_a_row_that_is_zero_in_one_head_alone_is_not_skipped():
    query, key, value, g = make(11, 11, 4, 2, torch.float64, batch=1)
    g[:, 0] = 0
    g[:, :, :7] = 0
    g[:, 2, 3] = 1
    _, grads = run(query, key, value, g)
    _, expected = define(query, key, value, g, Rules("attnlrp"))
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10


def test_a_soft_cap_passes_scores_of_zero_whole():
    query, key, value, g = make(11, 11, 4, 2, torch.float64)
    query[:, :, 5] = 0
    _, grads = run(query, key, value, g, softcap=2.0)
    _, expected = define(query, key, value, g, Rules("attnlrp"), softcap=2.0)
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_sink_of_minus_infinity_is_none(rule, window):
    tensors = make(11, 11, 4, 2, torch.float64)
    sinks = torch.tensor([-torch.inf, 0.5, -torch.inf, -2], dtype=torch.float64)
    flags = {"bounds": torch.tensor([[0, 8], [2, 11]]), "window": window, "sinks": sinks}
    out, grads = run(*tensors, rule=rule, **flags)
    truth, expected = define(*tensors, Rules(rule), **flags)
    assert gap(out, truth) <= 1e-10
    assert max(gap(a, b) for a, b in zip(grads, expected, strict=True)) <= 1e-10
    plain, _ = run(*tensors, rule=rule, **flags | {"sinks": None})
    assert gap(out[:, ::2], plain[:, ::2]) <= 1e-14 and gap(out[:, 1::2], plain[:, 1::2]) > 1e-2


def test_a_batch_of_nothing_but_padding_gives_zeros():
    tensors = make(11, 11, 4, 2, torch.float32)
    for chunk in (None, 4):
        out, grads = run(*tensors, bounds=torch.zeros(2, 2, dtype=torch.long), chunk=chunk)
        assert not out.any() and not any(t.any() for t in grads)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": torch.ones(2, 3, 11, 8), "value": torch.ones(2, 3, 11, 8)}, "multiple of that of the key/value heads"),
        ({"key": torch.ones(2, 2, 11, 4)}, r"takes query \(B, H, T, D\)"),
        ({"query": torch.ones(2, 4, 12, 8)}, r"1 \.\.\. S queries over S keys"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"chunk": 0}, "chunks are of at least 1 token"),
        ({"chunk": 4, "query": torch.ones(2, 4, 7, 8)}, "as many queries as keys, not 4 of 7 queries and 11 keys"),
        ({"softcap": 0.0}, "softcap must be positive, not 0.0"),
        ({"sinks": torch.ones(3)}, r"one number a head, \(4,\), not \(3,\)"),
        ({"bounds": torch.tensor([[0, 60], [0, 5]])}, "bounds must lie within the 11 tokens"),
        ({"bounds": torch.ones(3, 2)}, r"bounds must be \(B, 2\)"),
        ({"query": torch.ones(2, 4, 7, 8), "bounds": torch.tensor([[0, 8], [2, 11]])}, "with as many queries as keys"),
    ],
)
def test_bad_arguments(change, message):
    query, key, value, _ = make(11, 11, 4, 2, torch.float32)
    arguments = {"query": query, "key": key, "value": value} | change
    with pytest.raises(ValueError, match=message):
        ops.attention(**arguments)
