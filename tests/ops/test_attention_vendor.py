"""ops.attention by PyTorch's FlashAttention: what it is given, what it refuses, and who goes on from there. There is no
CUDA device here: a stand-in, which takes what the real operations take, computes what they would."""

import dataclasses
import importlib
import itertools
import types

import pytest
import torch

from lrp_fast import Rules, attribute, ops, reference
from lrp_fast.ops import attention_vendor, backend

attention = importlib.import_module("lrp_fast.ops.attention")  # in lrp_fast.ops the function hides the module

FORWARD, BACKWARD = "aten::_flash_attention_forward", "aten::_flash_attention_backward"


@pytest.fixture
def used(flash_attention, monkeypatch):
    """Who computed, in turn, as if all tensors were on CUDA. Our kernels are stood in for by plain PyTorch, and
    FlashAttention takes float32 and float64 too, in which errors show."""
    calls = flash_attention.calls

    def forward(query, key, value, *, sinks, bounds, absolute, table, **reach):
        calls.append("forward")
        rules = Rules(attention_gamma=float(absolute))
        return attention._torch_forward(query, key, value, sinks, bounds, attention.Reach(**reach), rules)

    def backward(g, query, key, value, out, lse, size, *, bounds, value_share, score_share, ratio, epsilon, gamma,
                 kept, table, **reach):  # fmt: skip
        calls.append("backward")
        assert kept is None
        name = {(0.5, 0.25): "attnlrp", (1, 0): "cp", (1, 1): "gradient"}[value_share, score_share]
        rules = Rules(name, attention_epsilon=epsilon, attention_gamma=gamma)
        tensors = (g, query, key, value, out, lse, size, bounds, None)
        return attention._torch_backward(*tensors, attention.Reach(**reach), rules, 0.0).grads

    ours = types.SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setattr(attention, "kernels", {"attention": ours}.__getitem__)
    monkeypatch.setattr(attention, "fused", lambda x, impl, **_: impl != "torch")
    every = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    monkeypatch.setattr(attention_vendor, "_DTYPES", every)
    return calls


def make(queries=11, keys=11, heads=4, kv_heads=2, dtype=torch.float64, dim=16, batch=1):
    """query, key, value and g, the heads of a token side by side but for the values'."""
    torch.manual_seed(0)
    query = torch.randn(batch, queries, heads, dim).transpose(1, 2)
    key = torch.randn(batch, keys, kv_heads, dim).transpose(1, 2)
    value, g = torch.randn(batch, kv_heads, keys, dim), torch.randn(batch, heads, queries, dim)
    return [t.to(dtype) for t in (query, key, value, g)]


def run(query, key, value, g, **flags):
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.attention(*leaves, **flags)
    return [out.detach(), *torch.autograd.grad(out, leaves, g, allow_unused=True)]


def define(query, key, value, g, rule="attnlrp", scale=None, causal=True, window=None):
    mask = reference.visible(len(query), query.shape[2], key.shape[2], causal=causal, window=window)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = reference.attention(query, key, value, mask, scale=scale)
    return [out, *reference.attention_backward(g, query, key, value, mask, scale=scale, rule=rule)]


def gap(found, truth):
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(found, truth, strict=True))


def test_pytorch_has_the_operations_as_they_are_called():
    """The real ones, which make shapes of tensors without memory."""
    query, key, value, g = (t.to("meta", torch.bfloat16) for t in make(7, 11, dim=64))
    for window, causal in itertools.product((None, 3), (True, False)):
        reach = attention.Reach(0.3, causal, window, None)
        out, lse = attention_vendor.forward(query, key, value, reach)
        assert out.shape == query.shape and lse.shape == query.shape[:3] and lse.dtype == torch.float32
        grads = attention_vendor.backward(g, query, key, value, out, lse, reach, Rules())
        assert [t.shape for t in grads] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize("rule, impl", [("attnlrp", "auto"), ("attnlrp", "vendor"), ("gradient", "auto")])
def test_equals_the_definition_in_float64(rule, impl, used):
    for causal, window, queries, (kv_heads, batch) in itertools.product(
        (True, False), (None, 1, 3, 11, 12), (1, 7, 11), ((1, 2), (2, 1), (4, 1))
    ):
        used.clear()
        tensors = make(queries, kv_heads=kv_heads, batch=batch)
        flags = {"rule": rule, "scale": 0.4, "causal": causal, "window": window}
        assert gap(run(*tensors, **flags, impl=impl), define(*tensors, **flags)) <= 1e-10, flags
        assert used == [FORWARD, BACKWARD]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 17])
def test_rounds_no_worse_than_the_dense_form_in_16_bits(dtype, window, used, within_rounding):
    tensors = make(63, 63, dtype=dtype, dim=64)
    found, plain = run(*tensors, window=window), define(*tensors, window=window)
    truth = define(*(t.double() for t in tensors), window=window)
    assert used == [FORWARD, BACKWARD]
    for one, own, exact in zip(found, plain, truth, strict=True):
        within_rounding(one, own, exact, terms=63 + 64)


def misaligned(x):
    """``x`` where it starts 8 bytes past a multiple of 16."""
    each = 8 // x.element_size()
    room = torch.empty(x.numel() + 2 * each, dtype=x.dtype)
    start = each if room.data_ptr() % 16 == 0 else 0
    moved = room[start : start + x.numel()].view(x.shape).copy_(x)
    assert moved.data_ptr() % 16 == 8
    return moved


REFUSED = {
    "cp": ({"rule": "cp"}, "no multiples of them"),
    "epsilon": ({"rule": Rules(attention_epsilon=0.1)}, "no multiples of them"),
    "gamma": ({"rule": Rules("gradient", attention_gamma=0.1)}, "no multiples of them"),
    "softcap": ({"softcap": 3.0}, "no soft-cap, no sinks and no padding"),
    "sinks": ({"sinks": torch.zeros(4, dtype=torch.float64)}, "no soft-cap, no sinks and no padding"),
    "bounds": ({"bounds": torch.tensor([[1, 11]])}, "no soft-cap, no sinks and no padding"),
    "head_dim 20": ({"dim": 20}, "multiple of 8 up to 192, or from 232 to 256, not 20"),
    "head_dim 200": ({"dim": 200}, "not 200"),
    "head_dim 264": ({"dim": 264}, "not 264"),
    "an empty batch": ({"batch": 0}, "at least one prompt"),
    "no scale": ({"scale": 0.0}, "a positive scale, not 0.0"),
    "a negative scale": ({"scale": -0.2}, "a positive scale, not -0.2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_serve_is_ours(case, used):
    flags, why = dict(REFUSED[case][0]), REFUSED[case][1]
    sizes = {name: flags.pop(name) for name in ("dim", "batch") if name in flags}
    _refused(make(**sizes), why, used, **flags)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "moved",
    [
        lambda t: t.mT.contiguous().mT,
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
        lambda t: torch.nn.functional.pad(t, (0, 1))[..., :-1],
        misaligned,
    ],
    ids=["features far apart", "gaps between features", "tokens askew", "start askew"],
)
def test_tensors_that_lie_askew_are_ours(moved, which, used):
    tensors = make()
    tensors[which] = moved(tensors[which])
    _refused(tensors, "16 bytes at a time", used)


def _refused(tensors, why, used, **flags):
    plain = run(*tensors, **flags, impl="torch")
    found = run(*tensors, **flags)
    assert used == ["forward", "backward"]
    for one, other in zip(found, plain, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    with pytest.raises(ValueError, match=rf"FlashAttention does not serve here: .*{why}.*\. Use impl='auto'"):
        run(*tensors, **flags, impl="vendor")


def test_strides_of_dimensions_of_one_are_nobodys_matter(used):
    query, key, value, g = make(heads=1, kv_heads=1)
    query = query.as_strided(query.shape, (3, 5, *query.stride()[2:]))
    assert gap(run(query, key, value, g), define(query, key, value, g)) <= 1e-10 and used == [FORWARD, BACKWARD]


def test_queries_beyond_32_bits_are_ours(used):
    """2^31 features are those of 524,288 tokens of 32 heads of 128. Narrower heads take as many as the next multiple of
    32, or of 64 from 128 on. Tensors without memory."""

    def refusal(tokens, head_dim):
        query, key = (torch.empty(1, tokens, heads, head_dim, device="meta").transpose(1, 2) for heads in (32, 8))
        return attention_vendor.refusal(query, key, key, None, None, attention.Reach(1.0, True, None, None), Rules())

    assert refusal(524_288 - 128, 128) is None and "524200 queries have too many" in refusal(524_200, 128)
    for head_dim, taken in ((80, 96), (136, 192)):
        assert refusal(2**31 // (32 * taken) - 128, head_dim) is None
        assert "too many" in refusal(2**31 // (32 * taken) + 128, head_dim)


def test_by_itself_it_takes_16_bits_on_cuda_alone(monkeypatch):
    reach = attention.Reach(1.0, True, None, None)
    for dtype, why in ((torch.float32, "not torch.float32"), (torch.bfloat16, "CUDA devices")):
        x = make(dtype=dtype)[0]
        assert why in attention_vendor.refusal(x, x, x, None, None, reach, Rules())
        with pytest.raises(ValueError, match=f"does not serve here: .*{why}"):
            ops.attention(x, x, x, impl="vendor")
    with pytest.raises(ValueError, match="impl must be one of .*'torch', 'vendor', 'cudnn', not 'flash'"):
        ops.attention(x, x, x, impl="flash")
    asked = []
    monkeypatch.setattr(attention_vendor, "can_use_flash_attention", lambda params: asked.append(params) or True)
    query, key, _, _ = (t.bfloat16() for t in make(7, 11))
    assert not attention_vendor._is_available(query, key, key) and not asked
    cuda = types.SimpleNamespace(is_cuda=True, shape=query.shape)
    monkeypatch.setattr(attention_vendor, "SDPAParams", lambda *given: given)
    assert attention_vendor._is_available(cuda, key, key)
    assert asked == [(cuda, key, key, None, 0.0, False, True)]  # of grouped heads, without a mask
    with monkeypatch.context() as patch:  # others take other arguments, and answer for them only when they are called
        patch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA4")
        assert not attention_vendor._is_available(cuda, key, key)
    monkeypatch.setattr(torch.version, "hip", "7.2")
    assert not attention_vendor._is_available(cuda, key, key)


def test_pytorch_can_be_asked_whether_it_serves():
    """With the very arguments; what it answers here is no, whatever they are."""
    query, key, _, _ = make(7, 11)
    params = attention_vendor.SDPAParams(query, key, key, None, 0.0, False, True)
    assert attention_vendor.can_use_flash_attention(params) is False
    assert params.is_causal is False and params.enable_gqa is True and params.attn_mask is None


@pytest.mark.parametrize("tiles, served", [([2], False), ([0, 2], False), ([0, 1, 2], True)])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_with_idle_queries_go_back_by_our_kernels(tiles, served, batch, used):
    """Three tiles of queries, the last not whole: 5 products of each, or 7 of those with relevance."""
    query, key, value, g = make(300, 300, batch=batch)
    only = torch.zeros_like(g)
    for tile in tiles:
        only[-1, tile, 128 * tile + 40] = g[-1, tile, 128 * tile + 40]  # one head's row
    expected = define(query, key, value, only)
    assert gap(run(query, key, value, only), expected) <= 1e-10
    assert used == [FORWARD, BACKWARD if served else "backward"]
    used.clear()
    assert gap(run(query, key, value, only, impl="vendor"), expected) <= 1e-10 and used == [FORWARD, BACKWARD]


def test_short_contexts_and_captured_streams_are_not_looked_at(monkeypatch):
    """Nobody may wait for a GPU that is only being told what to do later."""

    class OnCuda:
        is_cuda, shape = True, (1, 4, 300, 16)

    assert attention_vendor.is_better(torch.zeros(1, 4, 128, 16))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert attention_vendor.is_better(OnCuda())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(AttributeError, match="any"):
        attention_vendor.is_better(OnCuda())


@pytest.mark.parametrize("warn_only", [False, True])
def test_bits_that_have_to_repeat_are_ours(warn_only, used):
    tensors = make()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        found = run(*tensors)
        assert used == [FORWARD, "backward"]
        run(*tensors, impl="vendor")
        assert used[2:] == [FORWARD, BACKWARD]
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only  # nobody has touched it
    finally:
        torch.use_deterministic_algorithms(False)
    assert gap(found, define(*tensors)) <= 1e-10


@pytest.mark.parametrize("forward, backward", [*itertools.product(["vendor", "triton"], repeat=2)])
def test_each_pass_goes_by_what_is_preferred(forward, backward, used, monkeypatch):
    choice, asked = {"attention forward": forward, "attention backward": backward}, []
    preferred = lambda step, query: asked.append(query.shape) or (choice[step], "triton")  # noqa: E731
    monkeypatch.setattr(attention, "preferred", preferred)
    tensors = make()
    found = run(*tensors)
    assert used == [FORWARD if forward == "vendor" else "forward", BACKWARD if backward == "vendor" else "backward"]
    assert set(asked) == {tensors[0].shape} and gap(found, define(*tensors)) <= 1e-10
    for impl in ("triton", "torch", "vendor"):
        asked.clear()
        run(*tensors, impl=impl)
        assert not asked


def test_until_something_is_measured_it_is_preferred_but_where_ours_is_known_to_be_faster(monkeypatch):
    steps = [f"attention {step}" for step in ("forward", "backward")]
    assert {backend.preferred(step, torch.ones(1)) for step in steps} == {("vendor", "triton")}
    paths = {}
    found = types.SimpleNamespace(measured=types.SimpleNamespace(paths=paths))
    monkeypatch.setattr(backend, "_obeyed", lambda device: found)
    for capability, known in (((9, 0), ("triton",)), ((8, 0), ("vendor", "triton")), ((10, 0), ("vendor", "triton"))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, on=capability: on)
        for head_dim in (64, 128, 80, 256):
            default = known if head_dim in (64, 128) else ("vendor", "triton")
            x = types.SimpleNamespace(is_cuda=True, shape=(1, 2, 3, head_dim), device=None, element_size=lambda: 2)
            for step in steps:
                paths.clear()
                assert backend.preferred(step, x) == default
                paths[backend.kernels("attention").row(step, head_dim, 2)] = "cudnn"
                assert backend.preferred(step, x) == ("cudnn", *default)


@pytest.mark.parametrize("window, queries", [(None, 11), (3, 7)])
@pytest.mark.parametrize("first, second", [*itertools.permutations(["vendor", "triton", "torch"], 2)])
def test_any_backward_pass_goes_on_from_any_forward_pass(first, second, window, queries, used):
    *tensors, g = make(queries)
    kept = ops.attention_forward(*tensors, window=window, impl=first)
    assert kept.size is None and kept.lse.shape == kept.out.shape[:3]
    again = ops.attention_forward(*tensors, window=window, impl=second)
    assert gap(kept[:2], again[:2]) <= 1e-12
    used.clear()
    found = run(*tensors, g, window=window, kept=kept, impl=second)
    assert used == {"vendor": [BACKWARD], "triton": ["backward"], "torch": []}[second]
    assert gap(found, define(*tensors, g, window=window)) <= 1e-10


@pytest.mark.parametrize("rule", ["attnlrp", "gradient"])
def test_edges_after_it_equal_the_definition(rule, used):
    query, key, value, g = make(7)
    leaves, traces = [t.requires_grad_() for t in (query, key, value)], []
    torch.autograd.grad(ops.attention(*leaves, rule=rule, window=3, traces=traces), leaves, g)
    assert used == [FORWARD, BACKWARD]
    selected = ops.attention_edges(traces[0], torch.arange(7), topk=11, impl="torch")
    found = torch.zeros(7, 11, dtype=torch.float64)
    found[torch.repeat_interleave(torch.arange(7), selected.counts), selected.columns.long()] = selected.weights
    query, key, value = (t.detach() for t in leaves)
    mask = reference.visible(1, 7, 11, window=3)
    truth = reference.attention_edges(g, query, key, value, mask, key, value, scale=0.25, rule=rule)[0]
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()
    assert (ops.crossing(traces[0]) - truth.sum(0)).abs().max() <= 1e-10 * truth.abs().max()


def test_gradients_and_outputs_that_lie_anyhow(used):
    """The real kernel reads what it is told lies in rows from a multiple of 16 bytes on, and lse as memory."""
    query, key, value, g = make(dtype=torch.float32)
    reach = attention.Reach(0.25, True, None, None)
    out, lse = attention_vendor.forward(query, key, value, reach)
    expected = attention_vendor.backward(g, query, key, value, out, lse, reach, Rules())
    rows = misaligned(g.transpose(1, 2).contiguous()).transpose(1, 2)
    for strange in (g.double(), g.mT.contiguous().mT, rows):
        found = attention_vendor.backward(strange, query, key, value, out, lse, reach, Rules())
        assert all(map(torch.equal, found, expected))
    apart = torch.stack([lse, lse], -1)[..., 0]
    rows = misaligned(out.transpose(1, 2).contiguous()).transpose(1, 2)
    found = attention_vendor.backward(g, query, key, value, rows, apart, reach, Rules())
    assert all(map(torch.equal, found, expected))
    ones = torch.ones(()).expand(g.shape)
    found = attention_vendor.backward(ones, query, key, value, out, lse, reach, Rules())
    again = attention_vendor.backward(ones.contiguous(), query, key, value, out, lse, reach, Rules())
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("tier", ["graph", "device"])
def test_a_whole_model_by_it_but_for_its_last_layer(tier, used, tiny, monkeypatch):
    """In the last of the three layers only the target's query carries relevance."""
    model = tiny("llama", torch.float64, max_position_embeddings=512)
    ids = torch.randint(0, 97, (1, 300), generator=torch.Generator().manual_seed(0))
    module = importlib.import_module("lrp_fast.attribution")
    whole, tiers = module.planned, []

    def planned(*args, **named):
        tiers.append(tier)
        return dataclasses.replace(whole(*args, **named), tiers=(tier,) * 3)

    monkeypatch.setattr(module, "planned", planned)
    found = attribute(model, ids, target=3, contrast=5)
    assert tiers and used == [FORWARD] * 3 + ["backward", BACKWARD, BACKWARD]
    monkeypatch.setattr(attention, "fused", lambda *_, **__: False)
    plain = attribute(model, ids, target=3, contrast=5)
    assert (found.layers - plain.layers).abs().max() <= 1e-9 * plain.layers.abs().max()
