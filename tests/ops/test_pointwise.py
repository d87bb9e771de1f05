"""Activations, gated MLP and norms against the definitions."""

import pytest
import torch

from lrp_fast import Rules, ops, reference
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


def through_residual(norm, x, residual, g, g_total, rule):
    """Both results of ``norm(x, residual, rule)``, and the gradients of x and residual."""
    one, other = leaves(x, residual)
    y, total = norm(one, other, rule)
    used = [(t, g) for t, g in ((y, g), (total, g_total)) if g is not None]
    grads = torch.autograd.grad([t for t, _ in used], (one, other), [g for _, g in used])
    return y.detach(), total.detach(), *grads


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["both", "the norm alone", "the sum alone"])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_norm_of_a_sum(name, which, rule, dtype, judge):
    x, residual, g, g_total = (torch.randn(2, 5, 65).to(dtype) for _ in range(4))
    g = None if which == "the sum alone" else g
    g_total = None if which == "the norm alone" else g_total
    weight = torch.randn(65).to(dtype)
    affine = (weight,) if name == "rms_norm" else (weight, weight.flip(0))
    norm = lambda x, residual, rule: getattr(ops, name)(x, *affine, 1e-3, residual=residual, rule=rule)  # noqa: E731
    y, total, g_x, g_residual = through_residual(norm, x, residual, g, g_total, rule)
    assert torch.equal(total, x + residual) and torch.equal(y, getattr(ops, name)(total, *affine, 1e-3))
    assert torch.equal(g_x, g_residual)

    def definition(total, *g):
        found = 0
        w = weight.to(total.dtype)
        if which != "the sum alone":
            found = getattr(reference, f"{name}_backward")(g[0], total, w, 1e-3, rule=rule)
        return found if which == "the norm alone" else found + g[-1]

    judge(g_x, definition, [total, *(t for t in (g, g_total) if t is not None)], terms=65)


@pytest.mark.parametrize("rule", ["gradient", "attnlrp"])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_the_plain_gradient_of_a_norm_of_a_sum_is_autograd_s(name, rule):
    x, residual, g, g_total = torch.randn(4, 2, 5, 65, dtype=torch.float64)
    weight = torch.randn(65, dtype=torch.float64)
    affine = (weight,) if name == "rms_norm" else (weight, None)

    def plain(x, residual, rule):
        """Plain torch; with a rule other than "gradient" rstd is a constant."""
        total = x + residual
        centred = total if name == "rms_norm" else total - total.mean(-1, keepdim=True)
        rstd = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-3)
        return centred * (rstd if rule == "gradient" else rstd.detach()) * weight, total

    ours = lambda x, residual, rule: getattr(ops, name)(x, *affine, 1e-3, residual=residual, rule=rule)  # noqa: E731
    found, expected = (through_residual(f, x, residual, g, g_total, rule) for f in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_frozen_norms_keep_no_activations():
    x = torch.randn(5, 64, requires_grad=True)
    one = torch.ones(64)
    for op in (
        lambda: ops.rms_norm(x, one, 1e-6),
        lambda: ops.rms_norm(x, one, 1e-6, residual=x),
        lambda: ops.layer_norm(x, None, None, 1e-6),
        lambda: ops.layer_norm(x, None, None, 1e-6, residual=x),
    ):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            op()
        assert all(t.numel() <= 64 for t in kept)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no activation named 'swish2': choose one of 'silu'"):
        ops.activation(torch.ones(1), "swish2")
    with pytest.raises(ValueError, match=r"gate and up must have one shape, not \(2,\) and \(3,\)"):
        ops.gated_mlp(torch.ones(2), torch.ones(3))
    x = torch.ones(2, 3)
    for residual in (x[:1], x.double()):
        with pytest.raises(ValueError, match=r"one shape and dtype, not \(2, 3\) torch.float32 and \((1|2), 3\) torch"):
            ops.rms_norm(x, x[0], 1e-6, residual=residual)
        with pytest.raises(ValueError, match="x and residual must have one shape and dtype"):
            ops.layer_norm(x, None, None, 1e-6, residual=residual)


def test_a_gate_has_no_share_or_that_of_the_other_factor():
    """Which `ops.gated_mlp` relies on, to form both products in one."""
    for name in ("attnlrp", "cp", "gradient", "gim"):
        assert Rules(name).treatment.gate in (0, Rules(name).treatment.up)
