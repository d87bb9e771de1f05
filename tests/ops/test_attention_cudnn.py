"""ops.attention by PyTorch's call of cuDNN, stood in for as FlashAttention is: see test_attention_vendor.py."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops
from lrp_fast.ops import attention_cudnn
from tests.ops.test_attention_vendor import attention, define, gap, make, run, used  # noqa: F401

FORWARD, BACKWARD = "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_cudnn_attention_backward"


@pytest.fixture
def called(used, cudnn_attention):  # noqa: F811
    """Who computed, in turn: cuDNN in `used`'s list of the others."""
    cudnn_attention.calls = used
    return used


def test_pytorch_has_the_operations_as_they_are_called():
    """The real ones, which make shapes of tensors without memory."""
    query, key, value, g = (t.to("meta", torch.bfloat16) for t in make(dim=64))
    reach = attention.Reach(0.3, True, None, None)
    out, lse = attention_cudnn.forward(query, key, value, reach)
    assert out.shape == query.shape and lse.shape == query.shape[:3] and lse.dtype == torch.float32
    grads = attention_cudnn.backward(g, query, key, value, out, lse, reach, Rules())
    assert [t.shape for t in grads] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize("rule", ["attnlrp", "gradient"])
def test_equals_the_definition_in_float64(rule, called):
    cases = itertools.product(((True, 11), (False, 11), (False, 7)), ((1, 2), (2, 1), (4, 1)))
    for (causal, queries), (kv_heads, batch) in cases:
        called.clear()
        tensors = make(queries, kv_heads=kv_heads, batch=batch)
        flags = {"rule": rule, "scale": 0.4, "causal": causal}
        assert gap(run(*tensors, **flags, impl="cudnn"), define(*tensors, **flags)) <= 1e-10, flags
        assert [one for one in called if one in (FORWARD, BACKWARD)][-2:] == [FORWARD, BACKWARD]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_no_worse_than_the_dense_form_in_16_bits(dtype, called, within_rounding):
    tensors = make(63, 63, dtype=dtype, dim=64)
    found, plain = run(*tensors, impl="cudnn"), define(*tensors)
    truth = define(*(t.double() for t in tensors))
    for one, own, exact in zip(found, plain, truth, strict=True):
        within_rounding(one, own, exact, terms=63 + 64)


REFUSED = {
    "cp": ({"rule": "cp"}, "no multiples of them"),
    "softcap": ({"softcap": 3.0}, "no soft-cap, no sinks and no padding"),
    "bounds": ({"bounds": torch.tensor([[1, 11]])}, "no soft-cap, no sinks and no padding"),
    "window": ({"window": 5}, "no window"),
    "fewer queries": ({"queries": 7}, "its causal mask starts at the first key, and there are 7 queries over 11 keys"),
    "head_dim 20": ({"dim": 20}, "multiple of 8 up to 128, not 20"),
    "head_dim 192": ({"dim": 192}, "not 192"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_serve_others_do(case, called, monkeypatch):
    """Where it was measured to be fastest too."""
    monkeypatch.setattr(attention, "preferred", lambda *_: ("cudnn", "triton"))
    flags, why = dict(REFUSED[case][0]), REFUSED[case][1]
    sizes = {name: flags.pop(name) for name in ("dim", "queries") if name in flags}
    tensors = make(**sizes)
    plain = run(*tensors, **flags, impl="torch")
    found = run(*tensors, **flags)
    assert called == ["forward", "backward"]
    for one, other in zip(found, plain, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    with pytest.raises(ValueError, match=rf"cuDNN's attention does not serve here: .*{why}.*\. Use impl='auto'"):
        run(*tensors, **flags, impl="cudnn")
    with pytest.raises(ValueError, match="cuDNN's attention leaves nothing out: with a tolerance"):
        run(*tensors, impl="cudnn", tolerance=0.1)


def test_strides_beyond_32_bits_are_ours(called):
    x = torch.empty(1, 1, 2, 64, device="meta").as_strided((1, 1, 2, 64), (2**32, 2**32, 2**31, 1))
    given = (x, x, x, None, None, attention.Reach(1.0, True, None, None), Rules())
    assert attention_cudnn.refusal(*given) == "it counts strides in 32 bits"


def test_by_itself_it_takes_16_bits_on_cuda_alone(monkeypatch):
    x = make(dtype=torch.bfloat16)[0]
    with pytest.raises(ValueError, match="does not serve here: this PyTorch, cuDNN or device does not have it"):
        ops.attention(x, x, x, impl="cudnn")
    with pytest.raises(ValueError, match="takes float16 and bfloat16, not torch.float64"):
        ops.attention(x.double(), x.double(), x.double(), impl="cudnn")
    params = attention_cudnn.SDPAParams(x, x, x, None, 0.0, True, False)
    assert attention_cudnn.can_use_cudnn_attention(params) is False  # with the very arguments
    monkeypatch.setattr(torch.version, "hip", "7.2")
    assert not attention_cudnn._is_available(x, x, x, True)


@pytest.mark.parametrize("first, second", [*itertools.permutations(["cudnn", "vendor", "triton", "torch"], 2)])
def test_any_backward_pass_goes_on_from_any_forward_pass(first, second, called):
    *tensors, g = make()
    kept = ops.attention_forward(*tensors, impl=first)
    assert kept.size is None and kept.lse.shape == kept.out.shape[:3]
    again = ops.attention_forward(*tensors, impl=second)
    assert gap(kept[:2], again[:2]) <= 1e-12
    assert gap(run(*tensors, g, kept=kept, impl=second), define(*tensors, g)) <= 1e-10


@pytest.mark.parametrize("tiles, served", [([2], False), ([0, 1, 2], True)])
def test_gradients_with_idle_queries_go_back_by_our_kernels(tiles, served, called, monkeypatch):
    monkeypatch.setattr(attention, "preferred", lambda *_: ("cudnn", "triton"))
    query, key, value, g = make(300, 300)
    only = torch.zeros_like(g)
    for tile in tiles:
        only[-1, tile, 128 * tile + 40] = g[-1, tile, 128 * tile + 40]
    assert gap(run(query, key, value, only), define(query, key, value, only)) <= 1e-10
    assert called[0] == FORWARD and called[-1] == (BACKWARD if served else "backward")
