"""Activations, gated MLP and norms against the definitions."""

import pytest
import torch

from lrp_fast import ops, reference
from lrp_fast.ops.activation import ACTIVATIONS

RULES = ["attnlrp", "cp", "gradient"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def judge(within_rounding):
    """Compare found to the definition: 1e-10 in float64, by the precision oracle below."""

    def check(found, definition, tensors, terms=4):
        truth = definition(*(t.double() for t in tensors))
        if found.dtype == torch.float64:
            assert (found - truth).abs().max() <= 1e-10 * max(truth.abs().max(), 1e-300)
        else:
            within_rounding(found, definition(*tensors), truth, terms)

    return check


def leaves(*tensors):
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation(rule, kind, dtype, judge):
    z = torch.cat([torch.randn(257) * 3, torch.tensor([0.0, -0.0, 1e-4, -1e-4, 30.0, -30.0])]).to(dtype)
    g = torch.randn_like(z)
    (leaf,) = leaves(z)
    y = ops.activation(leaf, kind, rule=rule)
    assert torch.equal(y, ACTIVATIONS[kind].forward(z))
    judge(y.detach(), lambda z: reference.activation(z, kind), [z])
    (found,) = torch.autograd.grad(y, leaf, g)
    judge(found, lambda g, z: reference.activation_backward(g, z, kind, rule=rule), [g, z])


def test_silu_at_zero_passes_one_half():
    for dtype in DTYPES:
        z = torch.zeros(1, dtype=dtype, requires_grad=True)
        ops.activation(z, "silu").backward(torch.ones(1, dtype=dtype))
        assert z.grad.item() == 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_mlp(rule, kind, dtype, judge):
    gate, up, g = (torch.randn(3, 63).to(dtype) for _ in range(3))
    a, b = leaves(gate, up)
    y = ops.gated_mlp(a, b, kind, rule=rule)
    assert torch.equal(y, ACTIVATIONS[kind].forward(gate) * up)
    g_gate, g_up = torch.autograd.grad(y, (a, b), g, allow_unused=True)
    judge(g_up, lambda *t: reference.gated_mlp_backward(*t, kind, rule=rule)[1], [g, gate, up])
    if rule == "cp":
        assert g_gate is None
    else:
        judge(g_gate, lambda *t: reference.gated_mlp_backward(*t, kind, rule=rule)[0], [g, gate, up])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(rule, dtype, judge):
    x, weight, g = (torch.randn(*shape).to(dtype) for shape in ((2, 5, 65), (65,), (2, 5, 65)))
    (leaf,) = leaves(x)
    y = ops.rms_norm(leaf, weight, 1e-3, rule=rule)
    judge(y.detach(), lambda x, w: reference.rms_norm(x, w, 1e-3), [x, weight], terms=65)
    (found,) = torch.autograd.grad(y, leaf, g)
    judge(found, lambda *t: reference.rms_norm_backward(*t, 1e-3, rule=rule), [g, x, weight], terms=65)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(rule, dtype, affine, judge):
    x, g = (torch.randn(2, 5, 65).to(dtype) for _ in range(2))
    weight, bias = torch.randn(2, 65).to(dtype) if affine else (None, None)
    (leaf,) = leaves(x)
    y = ops.layer_norm(leaf, weight, bias, 1e-3, rule=rule)
    assert torch.equal(y, torch.nn.functional.layer_norm(x, (65,), weight, bias, 1e-3))
    (found,) = torch.autograd.grad(y, leaf, g)

    def definition(g, x):
        w = None if weight is None else weight.to(x.dtype)
        return reference.layer_norm_backward(g, x, w, 1e-3, rule=rule)

    judge(found, definition, [g, x], terms=65)


def test_frozen_norms_keep_no_activations():
    x = torch.randn(5, 64, requires_grad=True)
    for op in (lambda: ops.rms_norm(x, torch.ones(64), 1e-6), lambda: ops.layer_norm(x, None, None, 1e-6)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            op()
        assert all(t.numel() <= 64 for t in kept)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no activation named 'swish2': choose one of 'silu'"):
        ops.activation(torch.ones(1), "swish2")
    with pytest.raises(ValueError, match=r"gate and up must have one shape, not \(2,\) and \(3,\)"):
        ops.gated_mlp(torch.ones(2), torch.ones(3))
