"""ops.linear_by_rows against the definition, whatever its tiles, and how much of the matrix it asks for at a time."""

import sys

import pytest
import torch
from torch.nn import functional as F

from lrp_fast import ops, reference

module = sys.modules["lrp_fast.ops.linear_by_rows"]  # a function of that name hides it
RULES = [(0.0, 0.0), (0.1, 0.0), (0.0, 0.3), (0.1, 0.3)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def asked(monkeypatch):
    """The parts of a matrix that were asked for; tiles are of 4 rows of 17 features."""
    monkeypatch.setattr(module, "_TILE", 4 * 17 + 3)
    return []


def rows_of(weight, asked):
    def rows(start, stop):
        asked.append((start, stop))
        return weight[start:stop]

    return rows


def run(x, weight, bias, g, epsilon, gamma, asked):
    x = x.detach().requires_grad_()
    z = ops.linear_by_rows(
        x, F.linear(x.detach(), weight, bias), rows_of(weight, asked), bias, epsilon=epsilon, gamma=gamma
    )
    return z, torch.autograd.grad(z, x, g)[0]


@pytest.mark.parametrize("epsilon, gamma", RULES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_definition_in_float64_in_tiles(epsilon, gamma, with_bias, asked):
    x, weight = torch.randn(2, 9, 17, dtype=torch.float64), torch.randn(13, 17, dtype=torch.float64)
    bias = torch.randn(13, dtype=torch.float64) if with_bias else None
    x[0, 3], weight[5, 2], weight[7] = 0, 0, 0
    g = torch.randn(2, 9, 13, dtype=torch.float64)
    z, found = run(x, weight, bias, g, epsilon, gamma, asked)
    assert torch.equal(z, F.linear(x, weight, bias))
    truth = reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()
    whole = [(0, 4), (4, 8), (8, 12), (12, 13)]
    assert asked == whole * (2 if gamma else 1), "once each in every pass that needs the matrix"


@pytest.mark.parametrize("epsilon, gamma", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounds_no_worse_than_the_plain_form(epsilon, gamma, dtype, within_rounding, asked):
    x, weight, bias, g = (torch.randn(*shape).to(dtype) for shape in ((31, 17), (63, 17), (63,), (31, 63)))
    _, found = run(x, weight, bias, g, epsilon, gamma, asked)
    exact = [t.double() for t in (g, x, weight, bias)]
    plain = reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    within_rounding(found, plain, reference.linear_backward(*exact, epsilon=epsilon, gamma=gamma), terms=17 + 63)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_add_up_without_rounding_each_time(dtype, asked):
    x, weight, g = (torch.randn(*shape).to(dtype) for shape in ((31, 17), (2048, 17), (31, 2048)))
    truth = g.double() @ weight.double()
    errors = [(one.double() - truth).abs().mean() for one in (run(x, weight, None, g, 0, 0, asked)[1], g @ weight)]
    assert len(asked) == 512 and errors[0] <= 3 * errors[1]


@pytest.mark.parametrize("epsilon, gamma", RULES)
def test_rows_without_relevance_are_skipped_exactly(epsilon, gamma, asked):
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 9, 17), (13, 17), (13,)))
    g = torch.zeros(2, 9, 13, dtype=torch.float64)
    g[0, 4], g[1, 8] = torch.randn(2, 13, dtype=torch.float64)
    _, found = run(x, weight, bias, g, epsilon, gamma, asked)
    truth = reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()
    assert found.any(-1).nonzero().tolist() == [[0, 4], [1, 8]]


@pytest.mark.parametrize("epsilon, gamma", RULES)
def test_what_a_part_contributes_is_the_transpose(epsilon, gamma, asked):
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((9, 17), (13, 17), (13,)))
    part, g = torch.randn(9, 17, dtype=torch.float64), torch.randn(9, 13, dtype=torch.float64)
    z, back = run(x, weight, bias, g, epsilon, gamma, asked)
    through = ops.linear_by_rows_jvp(x, part, z.detach(), rows_of(weight, asked), bias, epsilon=epsilon, gamma=gamma)
    assert (through * g).sum().item() == pytest.approx((part * back).sum().item(), rel=1e-10)


def test_the_output_that_is_given_is_what_epsilon_and_gamma_look_at():
    """As where the model rounds its input too: z is not x @ W.T."""
    x, weight, g = (torch.randn(*shape, dtype=torch.float64) for shape in ((9, 17), (13, 17), (9, 13)))
    z = F.linear(x, weight) + 0.1 * torch.randn(9, 13, dtype=torch.float64)
    x.requires_grad_()
    found = torch.autograd.grad(ops.linear_by_rows(x, z, rows_of(weight, []), epsilon=0.1), x, g)[0]
    truth = (g * reference.epsilon_factor(z, 0.1)) @ weight
    assert (found - truth).abs().max() <= 1e-12 * truth.abs().max()


def test_negative_stabilisers_are_refused():
    with pytest.raises(ValueError, match="epsilon and gamma must be numbers >= 0, not 0.0 and -1.0"):
        ops.linear_by_rows(torch.ones(2, 3), torch.ones(2, 4), lambda start, stop: torch.ones(4, 3), gamma=-1.0)


@pytest.mark.parametrize("epsilon, gamma", RULES)
def test_a_matrix_without_numbers_is_refused(epsilon, gamma):
    """Adding a meta tensor to one that is not does nothing, and says nothing."""
    x, z, missing = torch.ones(2, 3, requires_grad=True), torch.ones(2, 4), torch.ones(4, 3, device="meta")
    with pytest.raises(RuntimeError, match="the matrix of a linear map is on the meta device"):
        ops.linear_by_rows(x, z, rows_of(missing, []), epsilon=epsilon, gamma=gamma).sum().backward()
    with pytest.raises(RuntimeError, match="the matrix of a linear map is on the meta device"):
        ops.linear_by_rows_jvp(x.detach(), x.detach(), z, rows_of(missing, []), epsilon=epsilon, gamma=gamma)
