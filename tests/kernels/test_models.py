"""attribute() and patched() with every operation on the kernels: as near to the float64 truth as plain PyTorch is."""

import copy
import importlib

import pytest
import torch

from lrp_fast import Rules, attribute, patched
from tests.kernels.ways import EXECUTED, ON_GPU

OPERATIONS = ("activation", "attention", "gated_mlp", "linear", "norm")
RULES = [Rules("attnlrp"), Rules("cp"), Rules("gradient"), Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
# Numbers summed on the way to a token's relevance: 3 layers, forward and back, with 5 sums over the hidden states, one
# over the intermediate ones, and the scores' and weights' over head_dim and tokens.
TERMS = 3 * 2 * (5 * 64 + 96 + 24 + 23)

FEW_RULES = RULES[:1]
if not ON_GPU:
    RULES = RULES[1::2]
if EXECUTED:
    FEW_RULES = []  # the first families of all are enough: what they launch is much the same
on_a_gpu = pytest.mark.skipif(not ON_GPU, reason="too slow on a CPU; the interpreter is wrong on bfloat16")
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.gamma}")


def module(name):
    return importlib.import_module(f"lrp_fast.ops.{name}")  # in lrp_fast.ops the function hides the module


@pytest.fixture
def by(monkeypatch):
    """``by(impl)``: what computes every operation from here on. With "vendor", attention by PyTorch's FlashAttention
    where that serves, and the rest as with "triton"."""

    def choose(impl):
        for name in OPERATIONS:
            monkeypatch.setattr(module(name), "fused", lambda *_, **__: impl != "torch")
        monkeypatch.setattr(module("attention"), "preferred", lambda *_: (impl, "triton"))

    return choose


def quantised(tiny, family, dtype, **config):
    """The model in ``dtype``, and its very weights in float64."""
    model = tiny(family, dtype, **config)
    truth = tiny(family, torch.float64, **config)
    truth.load_state_dict(model.state_dict())
    return model, truth


def furthest(model, result, truth, draws=4):
    """``result(model)`` furthest from ``truth``: of the model, and of others whose weights are up to a rounding away.

    Some prompts turn a rounding into a hundred (a router's near tie, a norm of little); one evaluation may be lucky.
    """
    found, generator = [result(model)], torch.Generator().manual_seed(0)
    for _ in range(draws):
        near = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in near.parameters():
                away = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * away.to(parameter.device))
        found.append(result(near))
    return max(found, key=lambda one: (one.double() - truth).abs().max())


@pytest.mark.shows("gpu")
def test_attribute_in_float32(family, rule, tiny, ids, by, device, within_rounding):
    def layers(model):
        return attribute(model, ids.to(model.device), target=3, contrast=5, rule=rule).layers

    model, double = quantised(tiny, family, torch.float32)
    by("torch")
    truth = layers(double)
    plain = furthest(model, layers, truth)
    by("triton")
    within_rounding(layers(model.to(device)), plain, truth, TERMS)


@on_a_gpu
@rules
def test_patched_in_float32(rule, tiny, ids, by, device, within_rounding):
    def relevance_gradient(model):
        x = model.get_input_embeddings()(ids.to(model.device)).detach().requires_grad_()
        with patched(model, rule):
            model(inputs_embeds=x).logits[0, -1, 7].backward()
        return x.grad.cpu()

    model, double = quantised(tiny, "llama", torch.float32)
    by("torch")
    truth = relevance_gradient(double)
    plain = furthest(model, relevance_gradient, truth)
    by("triton")
    within_rounding(relevance_gradient(model.to(device)), plain, truth, TERMS)


@on_a_gpu
def test_auto_means_the_kernels(tiny, ids, monkeypatch):
    used = set()
    for name in OPERATIONS:
        load = module(name).kernels
        monkeypatch.setattr(module(name), "kernels", lambda name, load=load: used.add(name) or load(name))
    attribute(tiny("llama").cuda(), ids.cuda(), rule=Rules("attnlrp", gamma=0.1))
    assert used == {"attention", "gated_mlp", "linear", "norm"}


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("rule, impl", [("attnlrp", "triton"), ("attnlrp", "vendor"), ("cp", "triton")])
def test_long_contexts_in_16_bits(rule, impl, dtype, tiny, by):
    """At most twice the error of plain PyTorch: each is a draw of its own of what 16 bits do to three layers."""
    config = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 2048}
    model, double = quantised(tiny, "llama", dtype, **config)
    model, double = model.cuda(), double.cuda()
    ids = torch.randint(0, 97, (1, 1500), generator=torch.Generator().manual_seed(2)).cuda()
    options = {"target": 3, "contrast": 5, "rule": rule}
    by("torch")
    truth, plain = attribute(double, ids, **options), attribute(model, ids, **options)
    by(impl)
    found = attribute(model, ids, **options)
    assert found.layers.isfinite().all()
    error, own = ((one.layers.double() - truth.layers).norm() for one in (found, plain))
    assert error <= 2 * own


@on_a_gpu
def test_both_implementations_agree_over_a_long_context(tiny, by):
    config = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 4096}
    model = tiny("qwen2", **config).cuda()
    ids = torch.randint(0, 97, (1, 3000), generator=torch.Generator().manual_seed(2)).cuda()
    found = []
    for impl in ("torch", "triton"):
        by(impl)
        found.append(attribute(model, ids, target=3, contrast=5).layers)
    assert (found[0] - found[1]).norm() <= 1e-4 * found[0].norm()


@on_a_gpu
def test_a_padded_batch_is_its_rows(tiny, ids):
    model = tiny("llama").cuda()
    ids = ids.cuda()
    embed = model.get_input_embeddings()

    def gradient(x, mask):
        x = x.detach().requires_grad_()
        with patched(model):
            model(inputs_embeds=x, attention_mask=mask).logits[:, -1, 7].sum().backward()
        return x.grad

    x = torch.cat([embed(ids), embed(ids.flip(1))])
    mask = torch.ones(2, 23, dtype=torch.long, device="cuda")
    mask[1, :6] = 0
    both = gradient(x, mask)
    position_free = gradient(x[:1], None)
    torch.testing.assert_close(both[:1], position_free, rtol=1e-4, atol=1e-5 * position_free.abs().max().item())
    assert not both[1, :6].any() and both[1, 6:].isfinite().all()
