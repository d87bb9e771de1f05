"""The epsilon and gamma rules of `ops.linear` against Zennit's, in float64.

Zennit's hooks hand relevance down where we hand down a relevance gradient: what enters is ``z * g_out``, what leaves
is ``x * g_in``. Its stabiliser adds epsilon with the sign of the denominator, sign(0) = +1, as ours does, and its
denominators include the bias.
"""

import importlib
import importlib.util
import sys
import types

import pytest
import torch

from lrp_fast import ops

GATE = 1e-10


@pytest.fixture(scope="module")
def zennit_rules():
    """``zennit.rules``; what Zennit imports for pictures only is stubbed, and sys.modules is put back afterwards."""
    # zennit.torchvision knows torchvision's networks, zennit.image writes PNGs with Pillow: no business of ours.
    stubs = {"zennit.torchvision": types.ModuleType("zennit.torchvision")}
    if importlib.util.find_spec("PIL") is None:
        stubs["PIL"] = types.ModuleType("PIL")
        stubs["PIL"].Image = None
    before = dict(sys.modules)
    sys.modules.update(stubs)
    try:
        yield importlib.import_module("zennit.rules")
    except ImportError as error:
        pytest.skip(f"Zennit does not import ({error}); `pip install --no-deps zennit==0.5.1` brings it")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("zennit", "PIL")]:
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]


def problem(bias: bool, positive: bool) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A linear layer, an input with a few exact zeros, and a relevance gradient at the output."""
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(37, 29, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(2, 11, 37, generator=generator, dtype=torch.float64)
    x = x.abs() if positive else x
    x[..., ::9] = 0.0
    g_out = torch.randn(2, 11, 29, generator=generator, dtype=torch.float64)
    return layer, x, g_out


def relevance_of_zennit(rule, layer, x, g_out) -> torch.Tensor:
    x = x.clone().requires_grad_()
    handles = rule.register(layer)
    try:
        z = layer(x)
        (relevance,) = torch.autograd.grad(z, x, z.detach() * g_out)
    finally:
        handles.remove()
    return relevance.detach()


def relevance_of_ours(layer, x, g_out, epsilon: float, gamma: float) -> torch.Tensor:
    x = x.clone().requires_grad_()
    z = ops.linear(x, layer.weight, layer.bias, epsilon=epsilon, gamma=gamma)
    torch.testing.assert_close(z, layer(x))
    (g_in,) = torch.autograd.grad(z, x, g_out)
    return x.detach() * g_in


def assert_same(ours: torch.Tensor, truth: torch.Tensor) -> None:
    gap = (ours - truth).abs().max() / truth.abs().max()
    assert gap.item() <= GATE


# 0.5 is no mere stabiliser: it is of the size of z itself, so a wrong sign or place of epsilon shows.
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_epsilon(zennit_rules, bias, epsilon):
    layer, x, g_out = problem(bias, positive=False)
    truth = relevance_of_zennit(zennit_rules.Epsilon(epsilon=epsilon), layer, x, g_out)
    assert_same(relevance_of_ours(layer, x, g_out, epsilon, 0.0), truth)


@pytest.mark.parametrize("positive", [True, False], ids=["positive_input", "signed_input"])
@pytest.mark.parametrize("gamma", [0.25, 10.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_gamma(zennit_rules, bias, epsilon, gamma, positive):
    layer, x, g_out = problem(bias, positive)
    truth = relevance_of_zennit(zennit_rules.Gamma(gamma=gamma, stabilizer=epsilon), layer, x, g_out)
    assert_same(relevance_of_ours(layer, x, g_out, epsilon, gamma), truth)


def test_gamma_where_the_output_is_zero(zennit_rules):
    """z = 0 carries no relevance (z * g_out = 0), whichever branch of the rule it is put in."""
    layer, x, g_out = problem(bias=True, positive=False)
    with torch.no_grad():
        layer.weight[4], layer.bias[4] = 0.0, 0.0
    truth = relevance_of_zennit(zennit_rules.Gamma(gamma=0.25, stabilizer=0.5), layer, x, g_out)
    assert_same(relevance_of_ours(layer, x, g_out, 0.5, 0.25), truth)
