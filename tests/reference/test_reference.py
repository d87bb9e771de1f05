"""The definitions against autograd, conservation and literal sums over contributions."""

import pytest
import torch

from lrp_fast import reference

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def grad(output, inputs, g):
    return torch.autograd.grad(output, inputs, g)


def random(*shape):
    return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)


def test_linear_without_stabilisers_is_the_transpose():
    x, weight, bias = random(5, 7), random(6, 7), random(6)
    z = reference.linear(x, weight, bias)
    g = torch.randn_like(z)
    torch.testing.assert_close(reference.linear_backward(g, x, weight, bias), grad(z, x, g)[0])


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_gamma_is_the_literal_sum_over_contributions(epsilon):
    x, weight, bias = random(7).detach(), random(6, 7).detach(), random(6).detach()
    gamma, g = 0.4, torch.randn(6, dtype=DOUBLE)
    expected = torch.zeros(7, dtype=DOUBLE)
    for j in range(6):
        parts = [float(x[i] * weight[j, i]) for i in range(7)] + [float(bias[j])]
        z = sum(parts)
        sigma = -1.0 if z < 0 else 1.0
        bent = [c + (gamma * c if c * sigma > 0 else 0.0) for c in parts]
        for i in range(7):
            expected[i] += float(g[j]) * z * bent[i] / (sum(bent) + epsilon * sigma)
    found = x * reference.linear_backward(g, x, weight, bias, epsilon=epsilon, gamma=gamma)
    torch.testing.assert_close(found, expected)


def test_gamma_conserves_relevance_without_bias():
    x, weight = random(5, 7).detach(), random(6, 7).detach()
    z = reference.linear(x, weight)
    g = torch.randn_like(z)
    for gamma in (0.0, 0.25, 10.0):
        relevance = x * reference.linear_backward(g, x, weight, gamma=gamma)
        torch.testing.assert_close(relevance.sum(-1), (g * z).sum(-1))


def test_epsilon_absorbs_a_share_of_relevance_and_keeps_its_sign():
    z = torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=DOUBLE)
    torch.testing.assert_close(reference.epsilon_factor(z, 1.0), torch.tensor([2 / 3, 0, 0, 3 / 4], dtype=DOUBLE))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_activation(kind):
    z = random(50)
    y = reference.activation(z, kind)
    plain = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "relu": torch.relu,
        "relu2": lambda t: torch.relu(t) ** 2,
    }[kind](z)
    torch.testing.assert_close(y, plain)
    g = torch.randn_like(z)
    torch.testing.assert_close(reference.activation_backward(g, z, kind, rule="gradient"), grad(plain, z, g)[0])
    torch.testing.assert_close(z * reference.activation_backward(g, z, kind), g * y)


def test_activation_ratio_at_zero_is_the_limit():
    zero = torch.zeros(1, dtype=DOUBLE)
    for kind, limit in (("silu", 0.5), ("gelu", 0.5), ("gelu_tanh", 0.5), ("relu", 0.0), ("relu2", 0.0)):
        assert reference.activation_backward(torch.ones(1, dtype=DOUBLE), zero, kind).item() == limit


@pytest.mark.parametrize("rule, conserved", [("attnlrp", 1.0), ("cp", 1.0)])
def test_gated_mlp_conserves(rule, conserved):
    gate, up = random(40), random(40)
    g = torch.randn(40, dtype=DOUBLE)
    y = reference.gated_mlp(gate, up, "silu")
    g_gate, g_up = reference.gated_mlp_backward(g, gate, up, "silu", rule=rule)
    torch.testing.assert_close(gate * g_gate + up * g_up, conserved * g * y)
    plain = reference.gated_mlp_backward(g, gate, up, "silu", rule="gradient")
    torch.testing.assert_close(plain, grad(y, (gate, up), g))


def test_norms():
    x, weight, bias = random(5, 8), random(8), random(8)
    g = torch.randn(5, 8, dtype=DOUBLE)
    y = reference.rms_norm(x, weight, 1e-3)
    torch.testing.assert_close(reference.rms_norm_backward(g, x, weight, 1e-3, rule="gradient"), grad(y, x, g)[0])
    torch.testing.assert_close((x * reference.rms_norm_backward(g, x, weight, 1e-3)).sum(-1), (g * y).sum(-1))
    y = reference.layer_norm(x, weight, bias, 1e-3)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (8,), weight, bias, 1e-3))
    torch.testing.assert_close(reference.layer_norm_backward(g, x, weight, 1e-3, rule="gradient"), grad(y, x, g)[0])
    found = (x * reference.layer_norm_backward(g, x, weight, 1e-3)).sum(-1)
    torch.testing.assert_close(found, (g * (y - bias)).sum(-1))


def make_attention(sinks=False):
    query, key, value = random(2, 4, 5, 6), random(2, 2, 7, 6), random(2, 2, 7, 6)
    extra = torch.randn(4, dtype=DOUBLE) if sinks else None
    mask = reference.visible(2, 5, 7, window=4)
    return query, key, value, mask, extra, torch.randn(2, 4, 5, 6, dtype=DOUBLE)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_attention_gradient_is_autograds(softcap, sinks):
    query, key, value, mask, extra, g = make_attention(sinks)
    out = reference.attention(query, key, value, mask, scale=0.4, softcap=softcap, sinks=extra)
    found = reference.attention_backward(
        g, query, key, value, mask, scale=0.4, rule="gradient", softcap=softcap, sinks=extra
    )
    torch.testing.assert_close(found, grad(out, (query, key, value), g))


def test_attention_attnlrp_scales_the_gradient_and_cp_keeps_the_values_alone():
    query, key, value, mask, _, g = make_attention()
    out = reference.attention(query, key, value, mask, scale=0.4)
    dq, dk, dv = grad(out, (query, key, value), g)
    torch.testing.assert_close(
        reference.attention_backward(g, query, key, value, mask, scale=0.4), (dq / 4, dk / 4, dv / 2)
    )
    found = reference.attention_backward(g, query, key, value, mask, scale=0.4, rule="cp")
    torch.testing.assert_close(found, (dq * 0, dk * 0, dv))


@pytest.mark.parametrize("epsilon, gamma", [(0.0, 0.5), (0.2, 0.0), (0.2, 0.5)])
def test_attention_gamma_and_epsilon_pass_what_the_stabiliser_leaves(epsilon, gamma):
    query, key, value, mask, _, g = make_attention()
    out = reference.attention(query, key, value, mask, scale=0.4)
    *_, dv = reference.attention_backward(
        g, query, key, value, mask, scale=0.4, rule="cp", epsilon=epsilon, gamma=gamma
    )
    passed = (value * dv).sum()
    if epsilon == 0:
        torch.testing.assert_close(passed, (g * out).sum())
    else:
        positive = torch.ones_like(g) * out.sign()  # relevance of one sign: a stabiliser can only take from it
        *_, dv = reference.attention_backward(
            positive, query, key, value, mask, scale=0.4, rule="cp", epsilon=epsilon, gamma=gamma
        )
        assert 0 < (value * dv).sum() < (positive * out).sum()


def test_visible():
    mask = reference.visible(2, 4, 4, window=2, bounds=torch.tensor([[0, 3], [1, 4]]))[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert mask[1] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
