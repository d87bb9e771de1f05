"""ops.linear against the definition, in float64 and by the precision oracle, and what it keeps."""

import importlib

import pytest
import torch

from lrp_fast import ops, reference

RULES = [(0.0, 0.0), (0.1, 0.0), (0.0, 0.3), (0.1, 0.3)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run(x, weight, bias, g, epsilon, gamma):
    x = x.detach().requires_grad_()
    z = ops.linear(x, weight, bias, epsilon=epsilon, gamma=gamma)
    return z, torch.autograd.grad(z, x, g)[0]


@pytest.mark.parametrize("epsilon, gamma", RULES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_definition_in_float64(epsilon, gamma, with_bias):
    x, weight = torch.randn(2, 9, 17, dtype=torch.float64), torch.randn(13, 17, dtype=torch.float64)
    bias = torch.randn(13, dtype=torch.float64) if with_bias else None
    x[0, 3], weight[5, 2], weight[7] = 0, 0, 0  # zero inputs, zero contributions, an output of nothing but the bias
    g = torch.randn(2, 9, 13, dtype=torch.float64)
    z, found = run(x, weight, bias, g, epsilon, gamma)
    assert torch.equal(z, torch.nn.functional.linear(x, weight, bias))
    truth = reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()


@pytest.mark.parametrize("epsilon, gamma", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounds_no_worse_than_the_plain_form(epsilon, gamma, dtype, within_rounding):
    x, weight, bias, g = (torch.randn(*shape).to(dtype) for shape in ((31, 65), (63, 65), (63,), (31, 63)))
    _, found = run(x, weight, bias, g, epsilon, gamma)
    exact = [t.double() for t in (g, x, weight, bias)]
    plain = reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    within_rounding(found, plain, reference.linear_backward(*exact, epsilon=epsilon, gamma=gamma), terms=65 + 63)


@pytest.mark.parametrize("epsilon, gamma", RULES)
def test_rows_without_relevance_are_skipped_exactly(epsilon, gamma):
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 9, 17), (13, 17), (13,)))
    g = torch.zeros(2, 9, 13, dtype=torch.float64)
    g[0, 4], g[1, 8] = torch.randn(2, 13, dtype=torch.float64)
    _, found = run(x, weight, bias, g, epsilon, gamma)
    truth = reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()
    touched = found.any(-1).nonzero().tolist()
    assert touched == [[0, 4], [1, 8]]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("few", [0, 2, 5000])
def test_logits_without_relevance_are_skipped(rows, few, monkeypatch):
    module = importlib.import_module("lrp_fast.ops.linear")
    monkeypatch.setattr(module, "relevance_gradient", _counted(module.relevance_gradient, dense := []))
    x, weight = torch.randn(1, rows, 17, dtype=torch.float64), torch.randn(9000, 17, dtype=torch.float64)
    g = torch.zeros(1, rows, 9000, dtype=torch.float64)
    if few:
        g[:, -1, torch.randperm(9000)[:few]] = torch.randn(few, dtype=torch.float64)
        g[:, 0, :2] = torch.randn(2, dtype=torch.float64)
    _, found = run(x, weight, None, g, 0.0, 0.0)
    truth = g @ weight
    assert found.shape == x.shape
    assert (found - truth).abs().max() <= 1e-12 * max(truth.abs().max(), 1)
    assert len(dense) == (few == 5000)


def _counted(function, calls):
    def counting(*given):
        calls.append(given)
        return function(*given)

    return counting


def test_saves_no_more_than_the_backward_pass_needs():
    x, weight, bias = torch.randn(9, 17, requires_grad=True), torch.randn(13, 17), torch.randn(13)
    for (epsilon, gamma), expected in zip(RULES, [0, 9 * 13, 9 * 17 + 9 * 13, 9 * 17 + 9 * 13], strict=True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            ops.linear(x, weight, bias, epsilon=epsilon, gamma=gamma)
        assert sum(t.numel() for t in kept if t.data_ptr() != weight.data_ptr()) == expected


def test_weights_get_no_gradient():
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    ops.linear(x, weight).sum().backward()
    assert weight.grad is None and x.grad is not None


@pytest.mark.parametrize("epsilon, gamma", RULES)
def test_any_strides_and_a_single_row(epsilon, gamma):
    x, weight = torch.randn(5, 7, 17, dtype=torch.float64), torch.randn(13, 17, dtype=torch.float64)
    g = torch.randn(7, 5, 13, dtype=torch.float64).transpose(0, 1)
    _, found = run(x, weight, None, g, epsilon, gamma)
    _, truth = run(x, weight, None, g.contiguous(), epsilon, gamma)
    assert torch.allclose(found, truth, rtol=1e-12)
    _, row = run(x[2, 3], weight, None, g[2, 3], epsilon, gamma)
    assert torch.allclose(row, truth[2, 3], rtol=1e-10)


def test_negative_stabilisers_are_refused():
    with pytest.raises(ValueError, match="epsilon and gamma must be numbers >= 0, not -1.0 and 0.0"):
        ops.linear(torch.ones(2, 3), torch.ones(4, 3), epsilon=-1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_stabiliser_below_the_dtypes_range_passes_no_nan(dtype):
    x, weight = torch.ones(3, 4, dtype=dtype), torch.zeros(5, 4, dtype=dtype)
    _, found = run(x, weight, None, torch.ones(3, 5, dtype=dtype), 1e-60, 0.0)
    assert torch.equal(found, torch.zeros_like(found))


def test_sums_beyond_float16_are_refused():
    x, weight = torch.full((1, 64), 200.0, dtype=torch.float16), torch.full((2, 64), 10.0, dtype=torch.float16)
    weight[:, ::2] = -10
    with pytest.raises(ValueError, match="the gamma rule's sums exceed float16"):
        ops.linear(x, weight, gamma=2.0)


def test_the_kernel_of_gamma_is_for_few_rows_and_float16(monkeypatch):
    """Elsewhere PyTorch's products were measured to be faster."""
    module, asked = importlib.import_module("lrp_fast.ops.linear"), []
    monkeypatch.setattr(module, "fused", lambda x, impl, served: asked.append(served) and False)
    weight = torch.randn(3, 5)
    for rows, dtype, gamma, served in (
        (32, torch.float32, 0.1, True), (33, torch.float32, 0.1, False), (33, torch.bfloat16, 0.1, False),
        (33, torch.float16, 0.1, True), (33, torch.float32, 0.0, True),
    ):  # fmt: skip
        ops.linear(torch.randn(1, rows, 5, dtype=dtype), weight.to(dtype), gamma=gamma)
        assert asked.pop() is served
