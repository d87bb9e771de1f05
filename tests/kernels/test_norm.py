"""The norm kernels against the definitions."""

import pytest
import torch

from lrp_fast import reference
from lrp_fast.kernels import norm

SHAPES = [(1, 1), (63, 111), (2, 3, 257), (5, 1024), (3, 2, 4, 64), (2, 18432)]
EPS = 1e-3


@pytest.fixture
def problem(dtype, draw):
    """x, g, weight and bias of a shape; one row is zero."""

    def make(shape, layout="contiguous"):
        x, g = draw(*shape, dtype=dtype, layout=layout), draw(*shape, dtype=dtype, layout=layout)
        if len(shape) > 1 and shape[0] > 1:
            x[1] = 0
        return x, g, draw(shape[-1], dtype=dtype), draw(shape[-1], dtype=dtype)

    return make


def rms_backward(rule):
    return lambda g, x, weight: reference.rms_norm_backward(g, x, weight, EPS, rule=rule)


def layer_backward(rule):
    return lambda g, x, weight: reference.layer_norm_backward(g, x, weight, EPS, rule=rule)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape, problem, judge):
    x, g, weight, _ = problem(shape)
    terms = shape[-1]
    y, rstd, total = norm.rms_norm_forward(x, weight, EPS)
    assert total is None and rstd.dtype == torch.float32 and rstd.shape == x.shape[:-1]
    judge(y, lambda x, w: reference.rms_norm(x, w, EPS), [x, weight], terms)
    # The same roundings as transformers' Llama RMSNorm: the normalised vector is rounded before the weight.
    rounded = weight * (x.float() * rstd[..., None]).to(x.dtype)
    torch.testing.assert_close(
        y, rounded, rtol=torch.finfo(torch.float32).eps if x.dtype == torch.float32 else 0, atol=0
    )
    for rule, frozen in (("attnlrp", True), ("gradient", False)):
        found = norm.rms_norm_backward(g, weight, rstd, None if frozen else x, frozen=frozen)
        judge(found, rms_backward(rule), [g, x, weight], terms)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_float32_stream_beside_a_narrower_branch(shape, problem, judge):
    """As `stream` replays 16-bit layers: the bits of the narrow norm forward, the gradient in float32."""
    narrow, g, weight, _ = problem(shape)
    x, terms = narrow.float(), shape[-1]
    y, rstd, _ = norm.rms_norm_forward(x, weight, EPS, dtype=weight.dtype)
    expected, expected_rstd, _ = norm.rms_norm_forward(narrow, weight, EPS)
    assert y.dtype == weight.dtype and torch.equal(y, expected) and torch.equal(rstd, expected_rstd)
    for rule, frozen in (("attnlrp", True), ("gradient", False)):
        found = norm.rms_norm_backward(g, weight, rstd, None if frozen else x, frozen=frozen, dtype=torch.float32)
        assert found.dtype == torch.float32
        judge(found, rms_backward(rule), [g.float(), x, weight.float()], terms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", ["weight and bias", "weight", "neither"])
def test_layer_norm(shape, affine, problem, judge):
    x, g, weight, bias = problem(shape)
    weight, bias = None if affine == "neither" else weight, bias if affine == "weight and bias" else None
    terms = shape[-1]
    y, mean, rstd, total = norm.layer_norm_forward(x, weight, bias, EPS)
    assert total is None and mean.dtype == rstd.dtype == torch.float32 and mean.shape == rstd.shape == x.shape[:-1]
    judge(y, lambda x, w, b: reference.layer_norm(x, w, b, EPS), [x, weight, bias], terms)
    for rule, frozen in (("attnlrp", True), ("gradient", False)):
        statistics = (None, rstd) if frozen else (mean, rstd)
        found = norm.layer_norm_backward(g, weight, *statistics, None if frozen else x, frozen=frozen)
        judge(found, layer_backward(rule), [g, x, weight], terms)


@pytest.mark.parametrize("shape", [(7, 111), (2, 3, 64)])
def test_residual_add(shape, problem, same):
    x, residual, weight, bias = problem(shape)
    total = x + residual
    y, rstd, found = norm.rms_norm_forward(x, weight, EPS, residual)
    assert found.dtype == total.dtype and torch.equal(found, total)
    y_alone, rstd_alone, _ = norm.rms_norm_forward(total, weight, EPS)
    same(rstd, rstd_alone, shape[-1])
    same(y, y_alone, shape[-1])
    *found, total_found = norm.layer_norm_forward(x, weight, bias, EPS, residual)
    assert torch.equal(total_found, total)
    for a, b in zip(found, norm.layer_norm_forward(total, weight, bias, EPS)[:3], strict=True):
        same(a, b, shape[-1])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("shape", [(7, 111), (2, 3, 64)])
def test_backward_with_residual(shape, wide, frozen, problem, draw):
    x, g, weight, bias = problem(shape)
    _, rstd, _ = norm.rms_norm_forward(x, weight, EPS)
    _, mean, rstd_centred, _ = norm.layer_norm_forward(x, weight, bias, EPS)
    g = g.float() if wide else g
    residual = draw(*shape, dtype=g.dtype)
    for backward, statistics in ((norm.rms_norm_backward, (rstd,)), (norm.layer_norm_backward, (mean, rstd_centred))):
        alone = backward(g.float(), weight, *statistics, x, frozen=frozen)
        found = backward(g, weight, *statistics, x, frozen=frozen, g_residual=residual)
        assert found.dtype == g.dtype
        expected = (alone + residual).to(g.dtype)
        torch.testing.assert_close(found, expected, rtol=torch.finfo(found.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("layout", ["gaps", "transposed"])
def test_any_strides(layout, problem, draw, dtype, same):
    x, g, weight, bias = problem((35, 33), layout)
    wide = torch.stack([weight, bias], 1)
    dense_x, dense_g = x.contiguous(), g.contiguous()
    pairs = [
        (norm.rms_norm_forward(x, wide[:, 0], EPS, g), norm.rms_norm_forward(dense_x, weight, EPS, dense_g)),
        (
            norm.layer_norm_forward(x, *wide.unbind(1), EPS, g),
            norm.layer_norm_forward(dense_x, weight, bias, EPS, dense_g),
        ),
    ]
    *_, mean, rstd, _ = pairs[1][0]
    pairs.append(
        (
            [norm.layer_norm_backward(g, wide[:, 0], mean, rstd, x, frozen=False, g_residual=x)],
            [norm.layer_norm_backward(dense_g, weight, mean, rstd, dense_x, frozen=False, g_residual=dense_x)],
        )
    )
    for found, expected in pairs:
        for a, b in zip(found, expected, strict=True):
            same(a, b, 33)


def test_bad_arguments_and_no_rows(draw):
    with pytest.raises(TypeError, match="normalised to torch.float16 with a weight of that dtype only"):
        norm.rms_norm_forward(draw(2, 8, dtype=torch.float32), draw(8, dtype=torch.float32), EPS, dtype=torch.float16)
    x = draw(2, 32769, dtype=torch.float32)
    with pytest.raises(ValueError, match="up to 32768 features, not 32769"):
        norm.rms_norm_forward(x, x[0], EPS)
    with pytest.raises(TypeError, match="one dtype"):
        norm.rms_norm_forward(x, None, EPS, x.half())
    g, rstd = draw(2, 5, dtype=torch.float32), draw(2, dtype=torch.float32)
    with pytest.raises(ValueError, match="x is needed"):
        norm.rms_norm_backward(g, None, rstd, frozen=False)
    with pytest.raises(ValueError, match="mean is needed"):
        norm.layer_norm_backward(g, None, None, rstd, g, frozen=False)
    y, rstd, _ = norm.rms_norm_forward(g[:0], g[0], EPS)
    assert y.shape == (0, 5) and rstd.shape == (0,)


def test_beyond_int32(draw, far_apart, same):
    x, g, weight = draw(3, 65, dtype=torch.float16), draw(3, 65, dtype=torch.float16), draw(65, dtype=torch.float16)
    expected = norm.layer_norm_forward(x, weight, weight, EPS, g)
    found = norm.layer_norm_forward(far_apart(x), weight, weight, EPS, far_apart(g))
    _, mean, rstd, _ = expected
    expected += (norm.layer_norm_backward(g, weight, mean, rstd, x, frozen=False, g_residual=g),)
    far_g, far_x = far_apart(g), far_apart(x)
    found += (norm.layer_norm_backward(far_g, weight, mean, rstd, far_x, frozen=False, g_residual=far_g),)
    for a, b in zip(found, expected, strict=True):
        same(a, b, 65)
