"""Every kernel gives the same bits each time, on a GPU that is busy with many programs at once."""

import pytest
import torch

from lrp_fast import Rules, ops
from lrp_fast.kernels import activation, attention, gated_mlp, linear, norm, relevance
from tests.kernels.ways import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter runs one program at a time: there are no races", allow_module_level=True)

REPEATS = 10
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture
def repeat():
    """``repeat(call)``: all of its results are those of its first run."""

    def check(call):
        first = [t for t in call() if t is not None]
        assert first and all(t.isfinite().all() for t in first)
        for _ in range(REPEATS - 1):
            again = [t for t in call() if t is not None]
            assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))

    return check


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(
    "rules", [Rules(), Rules("cp"), Rules("gradient", 0, 0, 0.01, 0.25)], ids=["attnlrp", "cp", "gamma"]
)
def test_attention(rules, dim, dtype, draw, repeat):
    sizes = ((4, 1500), (2, 1500), (2, 1500), (4, 1500))
    *tensors, g = (draw(1, tokens, heads, dim, dtype=dtype).transpose(1, 2) for heads, tokens in sizes)

    def call():
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = ops.attention(*leaves, rule=rules, window=700, impl="triton")
        return out.detach(), *torch.autograd.grad(out, leaves, g, allow_unused=True)

    repeat(call)


def test_attention_with_few_rows_of_relevance(dtype, draw, repeat):
    *tensors, g = (draw(1, 3000, 2, 64, dtype=dtype).transpose(1, 2) for _ in range(4))
    g[:, :, :-1] = 0

    def call():
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(ops.attention(*leaves, impl="triton"), leaves, g)

    repeat(call)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("gamma", [0.0, 0.25])
def test_bounded(gamma, dim, dtype, draw, repeat):
    sizes = ((4, 1500), (2, 1500), (2, 1500), (4, 1500))
    query, key, value, g = (draw(1, tokens, heads, dim, dtype=dtype).transpose(1, 2) for heads, tokens in sizes)
    flags = {"scale": dim**-0.5, "causal": True, "window": 700, "softcap": None}
    of_forward = attention.forward(query, key, value, **flags, absolute=gamma > 0)
    shares = {"value_share": 0.5, "score_share": 0.25, "ratio": True}

    def call():
        masses = attention.tile_masses(g, query, key, *of_forward, **flags, gamma=gamma)
        kept = masses > masses.mean()
        return masses, *attention.backward(
            g, query, key, value, *of_forward, **flags, **shares, gamma=gamma, kept=kept
        )  # fmt: skip

    repeat(call)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("rules", [Rules(), Rules("gradient", 0, 0, 0.01, 0.25)], ids=["attnlrp", "gamma"])
def test_edges(rules, dim, dtype, draw, repeat):
    query, key, value, g = (draw(1, 1500, heads, dim, dtype=dtype).transpose(1, 2) for heads in (4, 2, 2, 4))
    leaves, traces = [t.detach().requires_grad_() for t in (query, key, value)], []
    torch.autograd.grad(ops.attention(*leaves, rule=rules, impl="triton", traces=traces), leaves, g)
    rows = torch.arange(3, 1500, device="cuda")
    for choice in ({"topk": 16}, {"topk": 100}, {"mass": 0.85, "own": g[0, 0, :, 0].float()}):
        repeat(lambda: ops.attention_edges(traces[0], rows, value_part=key, impl="triton", **choice))  # noqa: B023


@pytest.mark.parametrize("rows", [20, 1000])
def test_gamma(rows, dtype, draw, repeat):
    x, weight, g = draw(rows, 1030, dtype=dtype), draw(770, 1030, dtype=dtype), draw(rows, 770, dtype=dtype)

    def call():
        z, t = linear.gamma_forward(x, weight, weight[:, 0], 0.1, 0.25)
        return z, t, linear.gamma_backward(g, x, t, weight, 0.25)

    repeat(call)


@pytest.mark.parametrize("features", [64, 4096])
def test_norms(features, dtype, draw, repeat):
    x, g, residual = (draw(2001, features, dtype=dtype) for _ in range(3))
    options = {"frozen": False, "g_residual": residual}

    def call():
        y, rstd, total = norm.rms_norm_forward(x, x[0], 1e-5, residual)
        z, mean, own, _ = norm.layer_norm_forward(x, x[0], x[1], 1e-5)
        back = norm.rms_norm_backward(g, x[0], rstd, total, **options)
        return y, rstd, total, z, mean, own, back, norm.layer_norm_backward(g, x[0], mean, own, x, **options)

    repeat(call)


def test_pointwise(dtype, draw, repeat):
    x, y, g = (draw(2001, 1111, dtype=dtype) for _ in range(3))
    shares = {"ratio": True, "gate_share": 0.5, "up_share": 0.5}
    repeat(
        lambda: (
            relevance.node_relevance(x, g),
            linear.epsilon_factor(g, x, 0.1),
            activation.activation_forward(x, "gelu"),
            activation.activation_backward(g, x, "gelu", ratio=True),
            gated_mlp.gated_mlp_forward(x, y, "silu"),
            *gated_mlp.gated_mlp_backward(g, x, y, "silu", **shares),
        )
    )
