"""Classes that nobody has read: what is linear is vouched for, and explained as it should be; all else is found."""

import importlib.util
import sys
import textwrap

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import GraphSpec, attribute
from lrp_fast.hf import check, coverage

CLASS = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x ** 3

    @staticmethod
    def backward(ctx, g):
        return g


class Part(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.first = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.last = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.config = config

    def forward(self, x):
{code}
        return self.last(y)


class PartedForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Part(config)
"""
LINEAR = {
    "sums and views": "y = x + 2 * self.first(x).view(x.shape)",
    "products with constants": "y = self.scale * x - x / 3",
    "a part of it": "y = torch.cat([x[..., 32:], -x[..., :32]], -1)",
    "written in place": "y = torch.zeros_like(x)\ny[..., :32] = x[..., 32:]",
    "a mean over features": "y = x - x.mean(-1, keepdim=True)",
    "constant indices": "y = x[..., torch.arange(63, -1, -1)]",
    "chosen by constants": "y = torch.where(torch.arange(64) > 5, x, torch.zeros_like(x))",
    "a branch on sizes": "y = x if x.shape[-1] > 3 else x * x",
    "another dtype and back": "y = x.double().to(x.dtype)",
    "an activation that has a rule": "y = nn.SiLU()(x) if False else x",
}
PLANTED = {
    "y = x * torch.sigmoid(x)": "computes sigmoid",
    "y = x * self.first(x)": "multiplies",
    "y = x * x.mean()": "multiplies",
    "y = x / x.sum(-1, keepdim=True)": "divides",
    "y = x if x.mean() > 0 else -x": "computes gt|decides",
    "y = x * float(x.sum())": "decides by numbers",
    "y = x.detach()": "cuts .* off from its gradients",
    "y = torch.where(x > 0, x, 0)": "computes gt",
    "y = x.abs()": "computes abs",
    "y = x.softmax(-1)": "computes _softmax",
    "y = x.clamp(max=1)": "computes clamp",
    "y = x + x.topk(3).values.sum()": "computes topk",
    "y = Cube.apply(x)": "without gradients|computes pow",
    "with torch.no_grad():\n    y = 2 * x": "without gradients",
    "y = torch.zeros_like(x)\ny[..., :32] = x[..., 32:]\ny = y * y": "multiplies",
    "y = torch.zeros_like(x)\ny.view(-1, 64)[0] = x[0, 0]\ny = y.exp()": "computes exp",
    "y = torch.einsum('bnd,bnd->bn', x, x).unsqueeze(-1) + x": "multiplies",
    "y = x + (x @ x.mT) @ self.first(x)": "multiplies",
    "y = x + torch.linalg.vector_norm(x)": "computes linalg_vector_norm",
    "y = x - torch.as_tensor(x.cpu().numpy())": "cannot be audited",
    "y = F.layer_norm(x, (64,))": "computes native_layer_norm",
    "y = x.round()": "computes round",
    "y = x * x.long()": "makes integers",
    "i = torch.zeros(x.shape).long()\ny = x.scatter(-1, i, x, reduce='multiply')": "computes scatter",
    "y = x.argsort(-1).to(x.dtype)": "computes (sort|argsort)",
}


@pytest.fixture
def parted(tmp_path, request):
    """``parted(code)``: a Llama whose MLPs are of a class that computes ``y`` by that code."""
    made = []

    def build(code):
        name = f"transformers_modules.parted_{len(made)}_{tmp_path.name}"
        path = tmp_path / f"parted_{len(made)}.py"
        path.write_text(CLASS.format(code=textwrap.indent(code, " " * 8)))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        made.append(name)
        spec.loader.exec_module(module)
        config = transformers.LlamaConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
            vocab_size=97, max_position_embeddings=64, initializer_range=0.2,
        )  # fmt: skip
        torch.manual_seed(0)
        return module.PartedForCausalLM(config).double().eval()

    yield build
    for name in made:
        del sys.modules[name]


@pytest.mark.parametrize("code", LINEAR.values(), ids=LINEAR)
def test_what_is_linear_is_vouched_for(code, parted, ids):
    model = parted(code)
    found = attribute(model, ids, 3, 5, rule="cp")
    assert not [entry for entry in coverage(model) if entry.rule is None]
    assert (found.layers.sum(-1) - found.value).abs().max() <= 1e-10 * abs(found.value)


@pytest.mark.parametrize(("code", "why"), PLANTED.items(), ids=PLANTED)
def test_what_is_not_is_found(code, why, parted, ids):
    """With the line of its source."""
    model = parted(code)
    words = rf"a Part, which (.*{why}|{why}).*, at parted_0.py:\d+: "
    with pytest.raises(lrp_fast.UnsupportedModuleError, match=words):
        attribute(model, ids, 3, 5)
    assert [entry.name for entry in coverage(model) if entry.rule is None] == ["Part"]


def test_what_no_dispatch_sees_is_found(parted):
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="a Part, which reads .data of a tensor"):
        check(parted("y = x + 2 * x.data"))


def test_what_one_layer_leaves_for_another_is_found(parted, ids):
    model = parted("y = x + getattr(self.config, 'left', 0)\nself.config.left = x")
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="a Part, which is, or is part of, a decoder layer th"):
        check(model)


@pytest.mark.parametrize(
    "code", ["y = x.roll(1, 1)", "y = x.cumsum(1)", "y = x + x[:, :1]", "y = F.pad(x, (0, 0, 1, 0))[:, :-1]"]
)
def test_where_tokens_meet_a_graph_is_refused(code, parted, ids):
    model = parted(code)
    found = attribute(model, ids, 3, 5, rule="cp")
    assert (found.layers.sum(-1) - found.value).abs().max() <= 1e-10 * abs(found.value)
    with pytest.raises(ValueError, match=r"layer 0: tokens meet in its Part, .* leave the graph out"):
        attribute(model, ids, 3, 5, graph=GraphSpec(topk=4))


def test_what_one_config_shows_says_nothing_about_another(parted, ids):
    """A branch that a config switches on is audited with that config."""
    model = parted("y = x * x if self.config.rms_norm_eps > 1 else x")
    check(model)
    model.config.rms_norm_eps = 2.0
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="multiplies"):
        check(model)
    model.config.rms_norm_eps = 1e-6
    attribute(model, ids, 3, 5)


def test_a_handler_that_was_registered_comes_first(parted, ids):
    model = parted("y = x.abs()")
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="computes abs"):
        check(model)
    lrp_fast.hf.register(type(model.model.layers[0].mlp), lrp_fast.hf.handlers.leave)
    check(model)


def test_a_changed_form_is_audited(tmp_path, parted, ids, monkeypatch):
    """A class of transformers that falls out of the table is as good as one that was never in it."""
    monkeypatch.setattr(lrp_fast.hf.forms, "known", dict)
    lrp_fast.hf.forms.handler_name.cache_clear()
    try:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=97
        ))  # fmt: skip
        with pytest.raises(lrp_fast.UnsupportedModuleError, match=r"a Llama(MLP|RMSNorm), which (multiplies|computes)"):
            check(model.eval())
    finally:
        lrp_fast.hf.forms.handler_name.cache_clear()
