"""lrp_fast.ops with impl="triton": the same numbers as plain PyTorch, for every rule, through autograd."""

import pytest
import torch

from lrp_fast import Rules, ops
from tests.kernels.ways import EXECUTED

RULES = [Rules("attnlrp"), Rules("cp"), Rules("gradient"), Rules("attnlrp", 0.1, 0.3, 0.1, 0.3), Rules("cp", 0.1)]
if EXECUTED:  # in float32, which has no tensor cores: slow
    RULES = RULES[3:]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.epsilon}-{rule.gamma}")


def compare(call, *tensors):
    """Outputs and gradients of both implementations, in float32."""
    found = []
    for impl in ("torch", "triton"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = call(*leaves, impl=impl)
        g = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, g, allow_unused=True)])
    for plain, fused in zip(*found, strict=True):
        assert (plain is None) == (fused is None)
        if plain is not None:
            torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


@pytest.fixture
def random(device):
    return lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


@rules
def test_linear(rule, random):
    weight, bias = random(33, 17), random(33)
    compare(
        lambda x, impl: ops.linear(x, weight, bias, epsilon=rule.epsilon, gamma=rule.gamma, impl=impl), random(2, 5, 17)
    )


@rules
def test_pointwise(rule, random):
    compare(lambda x, impl: ops.activation(x, "silu", rule=rule, impl=impl), random(2, 5, 17))
    compare(
        lambda a, b, impl: ops.gated_mlp(a, b, "gelu_tanh", rule=rule, impl=impl), random(2, 5, 17), random(2, 5, 17)
    )
    compare(lambda x, impl: ops.rms_norm(x, random(17), 1e-3, rule=rule, impl=impl), random(2, 5, 17))
    compare(lambda x, impl: ops.layer_norm(x, random(17), None, 1e-3, rule=rule, impl=impl), random(2, 5, 17))


@rules
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_norm_of_a_sum(rule, used, random):
    def through(norm, *affine):
        def call(x, residual, impl):
            results = norm(x, *affine, 1e-3, residual=residual, rule=rule, impl=impl)
            return torch.cat([results[i] for i in used])

        compare(call, random(2, 5, 17), random(3, 5, 17)[:2])

    through(ops.rms_norm, random(17))
    through(ops.layer_norm, random(17), None)


@rules
@pytest.mark.parametrize("flags", [{}, {"window": 5, "softcap": 3.0}, {"bounds": torch.tensor([[0, 9], [2, 11]])}])
def test_attention(rule, flags, random, device):
    flags = {name: value.to(device) if name == "bounds" else value for name, value in flags.items()}
    flags = flags | {"sinks": random(4)} if "softcap" in flags else flags
    call = lambda q, k, v, impl: ops.attention(q, k, v, rule=rule, impl=impl, **flags)  # noqa: E731
    compare(call, random(2, 4, 11, 16), random(2, 2, 11, 16), random(2, 2, 11, 16))


def test_attention_at_another_temperature(random):
    """Two attentions: of both, the kernels take what PyTorch takes."""
    flags = {"softcap": 3.0, "window": 5, "sinks": random(4)}
    call = lambda q, k, v, impl: ops.attention(q, k, v, rule="gim", impl=impl, **flags)  # noqa: E731
    compare(call, random(2, 4, 11, 16), random(2, 2, 11, 16), random(2, 2, 11, 16))


@rules
@pytest.mark.parametrize("choice", [{"topk": 3}, {"topk": 70}, {"mass": 0.7}], ids=str)
@pytest.mark.parametrize("flags", [{}, {"window": 5, "softcap": 3.0}], ids=["plain", "flags"])
def test_edges(rule, choice, flags, random):
    """Numbers whose edges lie further apart than their rounding, so that both choose the same."""
    leaves, traces = [random(1, heads, 23, 16).requires_grad_() for heads in (4, 2, 2)], []
    out = ops.attention(*leaves, rule=rule, traces=traces, **flags)
    torch.autograd.grad(out, leaves, random(1, 4, 23, 16), allow_unused=True)
    rows = torch.tensor([0, 3, 4, 11, 22], device=out.device)
    given = {**choice, "key_part": random(1, 2, 23, 16), "own": random(23)}
    plain, fused = (ops.attention_edges(traces[0], rows, impl=impl, **given) for impl in ("torch", "triton"))
    assert torch.equal(plain.counts, fused.counts) and torch.equal(plain.columns, fused.columns)
    largest = plain.weights.abs().max().item()
    for name in ("weights", "dropped"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-4, atol=1e-4 * largest)


def test_what_the_kernels_do_not_take_is_refused():
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="take float16, bfloat16 and float32, not torch.float64: use impl='torch'"):
        ops.activation(x, "silu", impl="triton")
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'triton', 'torch', not 'cuda'"):
        ops.activation(x, "silu", impl="cuda")


def test_the_fused_attention_goes_back_once(random):
    x = random(1, 2, 3, 16).requires_grad_()
    with pytest.raises(ValueError, match="leave out create_graph=True"):
        torch.autograd.grad(ops.attention(x, x, x, impl="triton").sum(), x, create_graph=True)
