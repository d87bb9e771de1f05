"""What the C++ core computes number by number, against the definitions and plain PyTorch."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lrp_fast import Rules, _native, ops, reference
from lrp_fast.ops import pointwise_native

pytestmark = pytest.mark.skipif(not pointwise_native.serves(torch.zeros(1)), reason="the C++ core does not serve here")

UNIT = torch.finfo(torch.float32).eps


@pytest.fixture
def used(monkeypatch):
    """What was computed by the core."""
    names = []
    for name in ("gated_mlp_backward", "rotary"):
        own = getattr(_native, name)
        monkeypatch.setattr(_native, name, lambda *a, n=name, f=own, **k: names.append(n) or f(*a, **k))
    return names


def draw(*shape, scale=1.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def gated(gate, up, g, kind, rule):
    leaves = [t.detach().requires_grad_() for t in (gate, up)]
    return torch.autograd.grad(ops.gated_mlp(*leaves, kind, rule=rule), leaves, g, allow_unused=True)


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(), (1, 1), (29,), (3, 7), (2, 5, 8), (1, 9, 40), (300, 1536)], ids=str)
def test_the_product_in_a_gated_mlp_on_the_way_back(rule, kind, shape, lanes, used):
    """Within what float32 can lose: of exp(p) as much as of p, 2 units in its last place, and a few of the products;
    below exp(-87) all of it. The definition of GELU adds 1 to a tanh, and loses what is below a unit of float64."""
    gate, up, g = draw(*shape, scale=6.0), draw(*shape, scale=2.0, seed=1), draw(*shape, seed=2)
    special = torch.tensor([0.0, -120.0, 120.0, -9.0, -3e38])
    gate.view(-1)[: len(special)] = special[: gate.numel()]
    found = gated(gate, up, g, kind, rule)
    truth = reference.gated_mlp_backward(g.double(), gate.double(), up.double(), kind, rule=rule)
    wide = gate.double()
    power = (wide if kind == "silu" else 1.6 * wide * (1 + 0.044715 * wide * wide)).clamp(-100, 0).abs()
    least = 2e-38 if kind == "silu" else torch.finfo(torch.float64).eps
    lost, below = UNIT * (8 + 4 * power), least * (1 + wide.clamp(-200).abs() + up.abs()) * g.abs()
    for one, exact in zip(found, truth, strict=True):
        if one is None:
            assert rule == "cp" and not exact.any()
        else:
            assert ((one - exact).abs() <= lost * exact.abs() + below).all()
    assert used == ["gated_mlp_backward"]


def test_halves_of_one_projection(used):
    gate, up = (t.requires_grad_() for t in draw(2, 5, 24).chunk(2, -1))
    g = draw(2, 5, 12, seed=1).transpose(0, 1).contiguous().transpose(0, 1)
    found = torch.autograd.grad(ops.gated_mlp(gate, up), (gate, up), g)
    expected = gated(*(t.detach().contiguous() for t in (gate, up, g)), "silu", "attnlrp")
    assert all(map(torch.equal, found, expected)) and used == ["gated_mlp_backward"] * 2


def test_what_it_does_not_take_goes_elsewhere(used, monkeypatch):
    one = draw(2, 8)
    for kind, rule, dtype in (
        ("gelu", "attnlrp", torch.float32),
        ("relu", "attnlrp", torch.float32),
        ("silu", "gradient", torch.float32),
        ("silu", "gim", torch.float32),
        ("silu", "attnlrp", torch.float64),
        ("silu", "attnlrp", torch.bfloat16),
    ):
        gated(*[one.to(dtype)] * 3, kind, rule)
    angles = draw(2, 1, 3, 8)
    x = draw(2, 5, 3, 8)
    for other, cos in (
        (draw(2, 3, 8), angles[0]),
        (x, draw(2, 5, 3, 8)),
        (x.double(), angles),
        (x, angles.double()),
        (draw(2, 5, 8, 3).mT, angles),
        (torch._neg_view(x), angles),
    ):
        assert torch.equal(ops.rotary(other, cos, cos), reference.rotary(other, cos, cos))
    with FakeTensorMode() as fake:
        assert ops.rotary(fake.from_tensor(x), *[fake.from_tensor(angles)] * 2).shape == x.shape
    traced = make_fx(lambda x: ops.rotary(x, angles, angles))(x)
    assert torch.equal(traced(x + 1), reference.rotary(x + 1, angles, angles))
    compiled = torch.compile(lambda x: ops.rotary(x, angles, angles), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), reference.rotary(x, angles, angles))
    monkeypatch.setattr(_native, "has_openmp", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    gated(one, one, one, "silu", "attnlrp")
    ops.rotary(x, angles, angles)
    assert not used


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["gate", "up", "g"])
def test_what_is_not_finite_is_as_in_plain_pytorch(which, wrong, kind, lanes, used, monkeypatch):
    given = {name: draw(4, 21, seed=i) for i, name in enumerate(("gate", "up", "g"))}
    given[which][2, [3, 20]] = wrong  # within a register, and behind the last whole one
    found = gated(**given, kind=kind, rule="attnlrp")
    assert used == ["gated_mlp_backward"]
    monkeypatch.setattr(pointwise_native, "serves", lambda *_: False)
    for one, plain in zip(found, gated(**given, kind=kind, rule="attnlrp"), strict=True):
        torch.testing.assert_close(one, plain, equal_nan=True)


def test_whatever_the_defaults_of_the_process_are(used):
    given = [draw(3, 8, seed=i) for i in range(3)]
    expected = gated(*given, "silu", "attnlrp")
    torch.set_default_dtype(torch.float64)
    try:
        found = gated(*given, "silu", "attnlrp")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected)) and len(used) == 2


def turned(x, cos, sin, g):
    leaf = x.detach().requires_grad_()
    y = ops.rotary(leaf, cos, sin)
    return y.detach(), torch.autograd.grad(y, leaf, g)[0]


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("features", [2, 16, 42, 64, 256])
def test_rotary_positions_in_the_bits_of_plain_pytorch(features, prompts, used, monkeypatch):
    for tokens, heads in ((1, 1), (5, 3), (700, 4)):
        x = draw(prompts, tokens, heads, features).transpose(1, 2)
        g = draw(prompts, tokens, heads, features + 1, seed=1)[..., 1:].transpose(1, 2)
        for of_all in (1, prompts):
            cos, sin = (draw(of_all, 1, tokens, features, seed=seed) for seed in (2, 3))
            used.clear()
            found = turned(x, cos, sin, g)
            assert used == ["rotary", "rotary"]
            with monkeypatch.context() as patch:
                patch.setattr(pointwise_native, "serves", lambda *_: False)
                expected = turned(x, cos, sin, g)
            assert all(map(torch.equal, found, expected))
            assert found[0].stride() == x.stride()
            assert torch.equal(found[0], reference.rotary(x, cos, sin))


def test_queries_and_keys_together(used):
    query, key = draw(2, 4, 6, 8), draw(2, 2, 6, 8, seed=1)
    cos, sin = (draw(1, 1, 6, 8, seed=seed) for seed in (2, 3))
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (query, key)]
        both = ops.rotary(tuple(leaves), cos.to(dtype), sin.to(dtype))
        each = [ops.rotary(one, cos.to(dtype), sin.to(dtype)) for one in leaves]
        assert isinstance(both, tuple) and all(map(torch.equal, both, each))
        found, expected = (torch.autograd.grad(sum((y * y).sum() for y in ys), leaves) for ys in (both, each))
        assert all(map(torch.equal, found, expected))
        assert len(used) == (8 if dtype == torch.float32 else 12)  # float64 goes by plain PyTorch
        # One of the two alone is read.
        both = ops.rotary(tuple(leaves), cos.to(dtype), sin.to(dtype))
        of_query, of_key = torch.autograd.grad((both[1] * both[1]).sum(), leaves)
        assert not of_query.any() and torch.equal(of_key, expected[1])
    constant = ops.rotary((query.detach(), key.detach().requires_grad_()), cos, sin)
    assert torch.autograd.grad(sum(y.sum() for y in constant), constant[1])[0].any()


def test_forward_derivatives_of_two_and_of_one(used):
    x, tangent, cos, sin = (draw(1, tokens, 5, 8, seed=i) for i, tokens in enumerate((3, 3, 1, 1)))
    with forward_ad.dual_level():
        both = ops.rotary((forward_ad.make_dual(x, tangent.requires_grad_()), x), cos, sin)
        found, other = (forward_ad.unpack_dual(y).tangent for y in both)
    assert other is None or not other.any()
    assert torch.equal(found, reference.rotary(tangent, cos, sin)) and used
    assert torch.autograd.grad(found.sum(), tangent)[0].any()


@pytest.mark.parametrize("x", [draw(1, 1, 5, 8).expand(2, 3, 5, 8), draw(40).unfold(0, 8, 1)[:5][None, None]], ids=str)
def test_of_numbers_that_share_their_place(x, used):
    cos = draw(1, 1, 5, 8, seed=1)
    assert torch.equal(ops.rotary(x, cos, cos), reference.rotary(x, cos, cos)) and used == ["rotary"]


def test_their_bits_do_not_hang_on_the_threads(used):
    gate, x, angles = draw(900, 513), draw(1, 700, 9, 64).transpose(1, 2), draw(1, 1, 700, 64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append([*gated(gate, gate, gate, "silu", "attnlrp"), *turned(x, angles, angles, x)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for some in found[1:] for one, other in zip(found[0], some, strict=True))
    assert len(used) == 9


def test_shares_are_powers_of_two(used):
    gate, up, g = (draw(3, 8, seed=i) for i in range(3))
    half, whole = gated(gate, up, g, "silu", Rules("attnlrp"))[1], gated(gate, up, g, "silu", "cp")[1]
    assert torch.equal(2 * half, whole) and used


def product(**change):
    rows = {name: np.zeros((3, 5), np.float32) for name in ("g", "gate", "up", "d_gate", "d_up")}
    return rows | {"linear": 1.0, "cubic": 0.0, "share": 0.5, "threads": 1} | change


def turn(**change):
    angles = {name: np.zeros((1, 5, 8), np.float32) for name in ("cos", "sin")}
    heads = {name: np.zeros((2, 3, 5, 8), np.float32) for name in ("x", "out")}
    return heads | angles | {"back": False, "threads": 1} | change


def test_bad_arguments():
    _native.gated_mlp_backward(**product())
    _native.gated_mlp_backward(**product(up=None, d_gate=None))
    _native.rotary(**turn())
    narrow, odd = np.zeros((3, 4), np.float32), np.zeros((2, 3, 5, 7), np.float32)
    read_only = np.zeros((3, 5), np.float32)
    read_only.flags.writeable = False
    askew = np.frombuffer(bytearray(70), np.uint8)[1:61].view(np.float32).reshape(3, 5)
    for change, error, message in (
        ({"g": np.zeros((3, 5))}, TypeError, "g must be a float32 numpy array"),
        ({"gate": narrow}, ValueError, "gate does not fit: dimension 1"),
        ({"up": narrow}, ValueError, "up does not fit: dimension 1"),
        ({"d_up": np.zeros((2, 5), np.float32)}, ValueError, "d_up does not fit: dimension 0"),
        ({"d_gate": np.zeros((5, 3), np.float32).T}, ValueError, "the last of them dense"),
        ({"up": None}, ValueError, "only up and d_gate may be None, and both"),
        ({"d_gate": None}, ValueError, "only up and d_gate may be None, and both"),
        ({"d_up": None}, TypeError, "d_up must be"),
        ({"d_up": read_only}, ValueError, "not writeable"),
        ({"gate": askew}, ValueError, "gate must be aligned"),
        ({"threads": -1}, ValueError, "threads must not be negative"),
    ):
        with pytest.raises(error, match=message):
            _native.gated_mlp_backward(**product(**change))
    for change, error, message in (
        ({"x": odd, "out": odd.copy()}, ValueError, "the features must be even"),
        ({"out": odd}, ValueError, "out does not fit: dimension 3"),
        ({"cos": np.zeros((3, 5, 8), np.float32)}, ValueError, "cos does not fit: dimension 0"),
        ({"sin": np.zeros((1, 4, 8), np.float32)}, ValueError, "sin does not fit: dimension 1"),
        ({"sin": np.zeros((5, 8), np.float32)}, ValueError, "sin must have 3 dimensions"),
        ({"cos": np.zeros((1, 5, 8))}, TypeError, "cos must be a float32 numpy array"),
        ({"out": np.broadcast_to(np.float32(0), (2, 3, 5, 8))}, ValueError, "the last of them dense"),
        ({"out": np.broadcast_to(np.zeros(8, np.float32), (2, 3, 5, 8))}, ValueError, "not writeable"),
    ):
        with pytest.raises(error, match=message):
            _native.rotary(**turn(**change))


def test_little_or_nothing_to_do(used):
    for rows, columns in ((0, 5), (3, 0)):
        empty = torch.zeros(rows, columns)
        assert [t.shape for t in gated(empty, empty, empty, "silu", "attnlrp")] == [(rows, columns)] * 2
    one = draw(1, 4)[:, ::2][:, :1]
    assert one.stride() == (4, 2) and gated(one, one, one, "silu", "attnlrp")[0].shape == (1, 1)
    assert ops.rotary(torch.zeros(1, 2, 0, 8), torch.zeros(1, 1, 0, 8), torch.zeros(1, 1, 0, 8)).shape == (1, 2, 0, 8)
    assert len(used) == 4
