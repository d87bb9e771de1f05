"""The gamma and epsilon kernels against the definition."""

import pytest
import torch

from lrp_fast import reference
from lrp_fast.kernels import linear
from lrp_fast.kernels.resources import SHARED
from lrp_fast.reference.linear import quotient
from tests.kernels.ways import EXECUTED

RULES = [(0.0, 0.3), (0.1, 0.3)]


def definition_of_t(epsilon, gamma):
    def t(x, weight, bias):
        z = reference.linear(x, weight, bias)
        a = reference.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
        return quotient(z, (1 + gamma / 2) * z.abs() + gamma / 2 * a + epsilon)

    return t


@pytest.fixture
def check_gamma(judge):
    def check(g, x, weight, bias, epsilon, gamma):
        z, t = linear.gamma_forward(x, weight, bias, epsilon, gamma)
        found = linear.gamma_backward(g, x, t, weight, gamma)
        outs, ins = weight.shape
        judge(z, reference.linear, [x, weight, bias], ins)
        judge(t, definition_of_t(epsilon, gamma), [x, weight, bias], ins)

        def definition(g, x, weight, bias):
            return reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)

        judge(found, definition, [g, x, weight, bias], ins + outs)

    return check


@pytest.mark.parametrize("epsilon, gamma", RULES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows, ins, outs", [(1, 257, 63), (63, 111, 257), (257, 63, 1), (1, 1, 1)])
def test_gamma(rows, ins, outs, with_bias, epsilon, gamma, dtype, draw, check_gamma):
    x, weight, g = draw(rows, ins, dtype=dtype), draw(outs, ins, dtype=dtype), draw(rows, outs, dtype=dtype)
    check_gamma(g, x, weight, draw(outs, dtype=dtype) if with_bias else None, epsilon, gamma)


@pytest.mark.parametrize("on", [(8, 9), (9, 0)])
@pytest.mark.parametrize("rows", [9, 150])
def test_gamma_with_the_tiles_of_every_device(on, rows, dtype, draw, check_gamma, device, monkeypatch):
    if EXECUTED:
        pytest.skip("test_shipped.py executes those of the target")
    needed = SHARED[10 * on[0] + on[1]]
    if device == "cuda" and torch.cuda.get_device_properties().shared_memory_per_block_optin < needed:
        pytest.skip("the tiles of a larger device do not fit into this one")
    monkeypatch.setattr(linear, "capability", lambda x: on)
    x, weight, g = draw(rows, 131, dtype=dtype), draw(140, 131, dtype=dtype), draw(rows, 140, dtype=dtype)
    check_gamma(g, x, weight, draw(140, dtype=dtype), 0.1, 0.3)


@pytest.mark.parametrize("layout", ["gaps", "transposed"])
def test_gamma_with_any_strides(layout, dtype, draw, check_gamma):
    x, g = draw(3, 21, 65, dtype=dtype, layout=layout), draw(3, 21, 33, dtype=dtype, layout=layout)
    check_gamma(g, x, draw(33, 65, dtype=dtype, layout=layout), draw(33, dtype=dtype), 0.1, 0.3)
    check_gamma(g, x, draw(65, 33, dtype=dtype).T, None, 0.0, 0.3)


def test_gamma_where_nothing_contributes(dtype, draw):
    x, weight, g = draw(9, 17, dtype=dtype), draw(33, 17, dtype=dtype), draw(9, 33, dtype=dtype)
    x[4], weight[5] = 0, 0
    z, t = linear.gamma_forward(x, weight, None, 0.0, 0.3)
    for zeros in (z[4], t[4], z[:, 5], t[:, 5]):
        assert not zeros.any()
    assert not linear.gamma_backward(g, x, t, weight, 0.3)[4].any()
    assert linear.gamma_backward(g, x, t, weight, 0.3).isfinite().all()


def test_gamma_without_rows(dtype, draw):
    weight = draw(33, 17, dtype=dtype)
    z, t = linear.gamma_forward(weight.new_zeros(2, 0, 17), weight, None, 0.0, 0.3)
    assert z.shape == t.shape == (2, 0, 33)
    assert linear.gamma_backward(z, weight.new_zeros(2, 0, 17), t, weight, 0.3).shape == (2, 0, 17)


def test_gamma_of_two_dtypes(draw):
    with pytest.raises(TypeError, match="one dtype"):
        linear.gamma_forward(draw(3, 5, dtype=torch.float32), draw(3, 5, dtype=torch.float16), None, 0.0, 0.3)


def test_gamma_takes_a_wider_gradient(draw):
    x, weight = draw(9, 17, dtype=torch.float16), draw(33, 17, dtype=torch.float16)
    g = draw(9, 33, dtype=torch.float32)
    _, t = linear.gamma_forward(x, weight, None, 0.0, 0.3)
    found = linear.gamma_backward(g, x, t, weight, 0.3)
    assert found.dtype == torch.float32
    assert (found - linear.gamma_backward(g.half(), x, t, weight, 0.3)).abs().max() < 0.01


def test_gamma_beyond_int32(draw, far_apart, same):
    x, weight, g = (draw(*shape, dtype=torch.float16) for shape in ((3, 17), (33, 17), (3, 33)))
    z, t = linear.gamma_forward(x, weight, None, 0.1, 0.3)
    far_z, far_t = linear.gamma_forward(far_apart(x), weight, None, 0.1, 0.3)
    same(far_z, z, 17)
    same(far_t, t, 17)
    found = linear.gamma_backward(far_apart(g), far_apart(x), far_apart(t), weight, 0.3)
    same(found, linear.gamma_backward(g, x, t, weight, 0.3), 33)


@pytest.mark.parametrize("layout", ["contiguous", "gaps", "transposed"])
@pytest.mark.parametrize("shape", [(1, 1), (63, 257), (2, 3, 1025), (111,)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_epsilon(shape, layout, epsilon, dtype, draw, judge):
    g, z = draw(*shape, dtype=dtype, layout=layout), draw(*shape, dtype=dtype, layout=layout)
    judge(linear.epsilon_factor(g, z, epsilon), lambda g, z: g * reference.epsilon_factor(z, epsilon), [g, z], terms=4)


def test_epsilon_of_zeros(dtype, draw):
    g, z = draw(9, 33, dtype=dtype), draw(9, 33, dtype=dtype)
    assert not linear.epsilon_factor(g, z, 0.1)[z == 0].any()
    assert not linear.epsilon_factor(g, torch.zeros_like(z), 1e-60).any()  # an epsilon that float32 rounds to 0
    assert linear.epsilon_factor(g[:0], z[:0], 0.1).shape == (0, 33)


def test_epsilon_beyond_int32(draw, far_apart, same):
    g, z = draw(3, 65, dtype=torch.float16), draw(3, 65, dtype=torch.float16)
    found = linear.epsilon_factor(far_apart(g), far_apart(z), 0.1)
    same(found, linear.epsilon_factor(g, z, 0.1), 4)
