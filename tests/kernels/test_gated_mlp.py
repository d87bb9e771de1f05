"""The kernels of activations and of the gated MLP against the definitions."""

import pytest
import torch

from lrp_fast import reference
from lrp_fast.kernels import activation, gated_mlp

RULES = {
    "attnlrp": {"ratio": True, "gate_share": 0.5, "up_share": 0.5},
    "cp": {"ratio": True, "gate_share": 0.0, "up_share": 1.0},
    "gradient": {"ratio": False, "gate_share": 1.0, "up_share": 1.0},
}
SHAPES = [(1, 1), (19, 257), (63, 3), (2, 1025), (111,)]
LAYOUTS = ["contiguous", "gaps", "transposed"]
# Where the activations bend, and far out; every draw of gates holds zeros as well.
POINTS = [-0.0, 1e-4, -1e-4, 30.0, -30.0, 9.0, -9.0]


@pytest.mark.parametrize("kind", activation.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_activation(kind, shape, dtype, draw, judge):
    z, g = draw(*shape, dtype=dtype, scale=3), draw(*shape, dtype=dtype)
    z.view(-1)[: len(POINTS)] = z.new_tensor(POINTS)[: z.numel()]
    judge(activation.activation_forward(z, kind), lambda z: reference.activation(z, kind), [z], terms=4)
    for rule, by_ratio in (("attnlrp", True), ("gradient", False)):
        found = activation.activation_backward(g, z, kind, ratio=by_ratio)
        judge(found, lambda g, z, rule=rule: reference.activation_backward(g, z, kind, rule=rule), [g, z], terms=4)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_activation_with_any_strides(layout, dtype, draw, same):
    g, z = draw(35, 33, dtype=dtype, layout=layout), draw(35, 33, dtype=dtype, layout=layout)
    same(activation.activation_forward(z, "silu"), activation.activation_forward(z.contiguous(), "silu"), 4)
    expected = activation.activation_backward(g.contiguous(), z.contiguous(), "silu", ratio=True)
    same(activation.activation_backward(g, z, "silu", ratio=True), expected, 4)


def test_silu_at_zero_passes_one_half(device, dtype):
    z = torch.zeros(1, dtype=dtype, device=device)
    assert activation.activation_backward(torch.ones_like(z), z, "silu", ratio=True).item() == 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", activation.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_mlp(rule, kind, shape, dtype, draw, judge):
    gate, up, g = (draw(*shape, dtype=dtype, scale=scale) for scale in (3, 1, 1))
    gate.view(-1)[: len(POINTS)] = gate.new_tensor(POINTS)[: gate.numel()]
    judge(gated_mlp.gated_mlp_forward(gate, up, kind), lambda a, u: reference.gated_mlp(a, u, kind), [gate, up], 4)
    found = gated_mlp.gated_mlp_backward(g, gate, None if rule == "cp" else up, kind, **RULES[rule])
    for i in (0, 1):
        if rule == "cp" and i == 0:
            assert found[0] is None
            continue

        def definition(g, gate, up, i=i):
            return reference.gated_mlp_backward(g, gate, up, kind, rule=rule)[i]

        judge(found[i], definition, [g, gate, up], terms=4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_gated_mlp_with_any_strides(rule, layout, dtype, draw, same):
    kind = "gelu_tanh"
    g, gate, up = (draw(35, 33, dtype=dtype, layout=layout) for _ in range(3))
    plain = [x.contiguous() for x in (g, gate, up)]
    expected = gated_mlp.gated_mlp_forward(*plain[1:], kind)
    same(gated_mlp.gated_mlp_forward(gate, up, kind), expected, 4)
    expected = gated_mlp.gated_mlp_backward(*plain, kind, **RULES[rule])
    found = gated_mlp.gated_mlp_backward(g, gate, up, kind, **RULES[rule])
    for i in (0, 1):
        assert (found[i] is None) == (expected[i] is None) == (rule == "cp" and i == 0)
        if found[i] is not None:
            same(found[i], expected[i], 4)


def test_halves_of_one_projection(dtype, draw, same):
    gate, up = draw(5, 7, 66, dtype=dtype).chunk(2, -1)
    g = draw(5, 7, 33, dtype=dtype)
    expected = gated_mlp.gated_mlp_backward(g, gate.clone(), up.clone(), "silu", **RULES["attnlrp"])
    for found, one in zip(gated_mlp.gated_mlp_backward(g, gate, up, "silu", **RULES["attnlrp"]), expected, strict=True):
        same(found, one, 4)


def test_empty(draw):
    x = draw(3, 33, dtype=torch.float32)[:0]
    assert gated_mlp.gated_mlp_forward(x, x, "silu").shape == (0, 33)
    assert activation.activation_forward(x, "silu").shape == (0, 33)


def test_beyond_int32(draw, far_apart, same):
    g, gate, up = (draw(3, 65, dtype=torch.float16) for _ in range(3))
    far = [far_apart(x) for x in (g, gate, up)]
    same(gated_mlp.gated_mlp_forward(*far[1:], "silu"), gated_mlp.gated_mlp_forward(gate, up, "silu"), 4)
    expected = gated_mlp.gated_mlp_backward(g, gate, up, "silu", **RULES["attnlrp"])
    for found, one in zip(gated_mlp.gated_mlp_backward(*far, "silu", **RULES["attnlrp"]), expected, strict=True):
        same(found, one, 4)
    by_ratio = activation.activation_backward(g, gate, "silu", ratio=True)
    same(activation.activation_backward(far[0], far[1], "silu", ratio=True), by_ratio, 4)
