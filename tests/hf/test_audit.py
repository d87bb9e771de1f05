"""Classes that nobody has read: what is linear is vouched for, and explained as it should be; all else is found."""

import functools
import importlib.util
import sys
import textwrap

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import GraphSpec, attribute
from lrp_fast.hf import check, coverage
from tests import decoders

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
    "c = torch.view_as_complex(x.unflatten(-1, (32, 2)))\ny = torch.view_as_real(c * c.conj()).flatten(-2)": "conj",
    "y = x.view(torch.float16).view(x.dtype)": "computes view",
    "y = x if x.shape[1] <= 7 else x * x": "multiplies",
    "y = x if x.dtype == torch.float32 else x * x": "multiplies",
    "y = x if (self.scale > 2).all() else x * x": "decides|cannot be audited",
}


@pytest.fixture
def parted(tmp_path, request):
    """``parted(code)``: a Llama whose MLPs are of a class that computes ``y`` by that code."""
    made = []

    def build(code, name="PartedForCausalLM"):
        source, cls = "import torch" + code, name
        if name == "PartedForCausalLM":
            source = CLASS.format(code=textwrap.indent(code, " " * 8))
        name = f"transformers_modules.parted_{len(made)}_{tmp_path.name}"
        path = tmp_path / f"parted_{len(made)}.py"
        path.write_text(source)
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
        return getattr(module, cls)(config).double().eval()

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
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="a Part, which says data in its code"):
        check(parted("y = x + 2 * x.data"))


def test_what_one_layer_leaves_for_another_is_found(parted, ids):
    model = parted("y = x + getattr(self.config, 'left', 0)\nself.config.left = x")
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="a Part, which is, or is part of, a decoder layer th"):
        check(model)


@pytest.mark.parametrize(
    "code",
    [
        "y = x.roll(1, 1)", "y = x.cumsum(1)", "y = x + x[:, :1]", "y = F.pad(x, (0, 0, 1, 0))[:, :-1]",
        "y = x[:, torch.arange(x.shape[1] - 1, -1, -1)]", "y = x.flatten(1).roll(64, 1).view(x.shape)",
        "y = x.transpose(1, 2).reshape(x.shape)", "y = x.flip(1)",
        "y = x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1))",
        "y = torch.zeros_like(x)\ny[:, torch.arange(x.shape[1] - 1, -1, -1)] = x",
    ],
)  # fmt: skip
def test_where_tokens_meet_a_graph_is_refused(code, parted, ids):
    model = parted(code)
    found = attribute(model, ids, 3, 5, rule="cp")
    assert (found.layers.sum(-1) - found.value).abs().max() <= 1e-10 * abs(found.value)
    with pytest.raises(ValueError, match=r"layer 0: tokens meet in its Part, .* leave the graph out"):
        attribute(model, ids, 3, 5, graph=GraphSpec(topk=4))
    short = ids[0, :5]  # which reads none of the padding that company would bring
    _, beside = lrp_fast.attribute_batch(model, [ids[0], short], target=3, contrast=5, rule="cp")
    assert torch.equal(beside.layers, attribute(model, short, 3, 5, rule="cp").layers)


@pytest.mark.parametrize(
    "code", ["y = x.mT.mT", "y = x.view(1, -1, 4, 16).transpose(1, 2).transpose(1, 2).flatten(2)"]
)
def test_where_they_stay_a_graph_is_that_of_a_pass_a_row(code, parted, ids):
    model = parted(code)
    graph = attribute(model, ids, 3, 5, graph=GraphSpec(topk=30)).graph
    rows = lrp_fast.between(model, ids, 0, 1, range(ids.shape[1]), target=3, contrast=5)
    assert (graph.dense(0) - rows).abs().max() <= 1e-12 * rows.abs().max()


def test_what_a_module_was_told_after_it_was_made_is_seen(parted):
    model = parted("y = x * x if getattr(self, 'flag', False) else x")
    check(model)
    model.model.layers[1].mlp.flag = True
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="multiplies"):
        check(model)


BETWEEN = """
from transformers import LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class ParentModel(LlamaModel):
    def forward(self, input_ids, use_cache=None, **kwargs):
        e = self.embed_tokens(input_ids)
        positions = torch.arange(e.shape[1]).unsqueeze(0)
        h, tables, mid = e, self.rotary_emb(e, positions), []
        {before}
        for i, layer in enumerate(self.layers):
            h = layer(h, attention_mask=None, position_embeddings=tables)
            mid.append(h)
            {between}
        {after}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(h))


class ParentForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = ParentModel(config)
"""


@pytest.mark.parametrize(
    ("place", "code", "why"),
    [
        ("before", "h = e.roll(1, 1)", "before the first decoder layer"),
        ("before", "h = e - e.mean(1, keepdim=True)", "before the first decoder layer"),
        ("between", "h = h + e", "changes the hidden states between"),
        ("between", "h += e", "changes the hidden states between|reads more than"),
        ("between", "h[:, 1:] += h[:, :-1].clone()", "changes the hidden states between"),
        ("after", "h = h + e", "reads more than what its last decoder layer puts out"),
        ("after", "h = sum(mid) / 2", "reads more than what its last decoder layer puts out"),
        ("after", "pass", None),
    ],
)
def test_what_a_model_does_about_its_layers_is_seen(place, code, why, parted, ids):
    places = {"before": "pass", "between": "pass", "after": "pass"} | {place: code}
    model = parted(BETWEEN.format(**places), name="ParentForCausalLM")
    if why is None:
        attribute(model, ids, 3, 5)
        return
    with pytest.raises(lrp_fast.UnsupportedModuleError, match=why):
        attribute(model, ids, 3, 5)


def test_without_a_mask_eager_attention_that_is_known_reads_the_future_too(parted, ids):
    model = parted(BETWEEN.format(before="pass", between="pass", after="pass"), name="ParentForCausalLM")
    attribute(model, ids, 3, 5)
    model.set_attn_implementation("eager")
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="ParentModel, which reads tokens in both directions"):
        attribute(model, ids, 3, 5)


ATTENTION = """
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import ALL_ATTENTION_FUNCTIONS, LlamaAttention


class PartAttention(LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        given = {{"scaling": self.scaling}}
        {code}
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, q, k, v, attention_mask, **given)
        return self.o_proj(out.flatten(2)), None


class AttendingForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            layer.self_attn = PartAttention(config, i)
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("given['scaling'] = hidden_states.mean()", "hands its attention more than"),
        ("given['is_causal'] = False", "in both directions"),
        ("k, v = k + 1, v + 1", None),
        ("pass", None),
    ],
)
def test_an_attention_that_nobody_has_read(code, why, parted, ids):
    """What it adds to keys and values is no contribution of the hidden states."""
    model = parted(ATTENTION.format(code=code), name="AttendingForCausalLM")
    model.set_attn_implementation("sdpa")
    if why is not None:
        with pytest.raises(lrp_fast.UnsupportedModuleError, match=why):
            check(model)
        return
    graph = attribute(model, ids, 3, 5, graph=GraphSpec(topk=30)).graph
    rows = lrp_fast.between(model, ids, 0, 1, range(ids.shape[1]), target=3, contrast=5)
    assert (graph.dense(0) - rows).abs().max() <= 1e-12 * rows.abs().max()


@decoders.RECENT
def test_a_model_that_makes_no_mask_reads_the_future_by_eager_attention(monkeypatch, ids):
    """Moshi's of transformers 5.17 makes one only where it is given one."""
    from transformers.models.moshi import modeling_moshi

    model = decoders.build("moshi", torch.float32, vocab_size=98)
    monkeypatch.setattr(modeling_moshi, "create_causal_mask", lambda *_, **__: None)
    causal = attribute(model, ids, 3, 5)
    own = model(ids).logits[0, -1]
    assert abs(causal.value - (own[3] - own[5]).item()) <= 1e-4
    model.set_attn_implementation("eager")
    own = model(ids).logits[0, -1]
    assert abs(causal.value - (own[3] - own[5]).item()) > 1e-3
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="MoshiAttention, which reads tokens in both directions"):
        attribute(model, ids, 3, 5)


def test_a_method_that_somebody_wrapped_has_no_form_that_is_known(ids, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    own = LlamaMLP.forward

    @functools.wraps(own)
    def squared(self, x):
        return own(self, x) ** 2

    assert lrp_fast.hf.forms.handler_name(LlamaMLP) == "gated_mlp"
    monkeypatch.setattr(LlamaMLP, "forward", squared)
    assert lrp_fast.hf.forms.handler_name(LlamaMLP) is None


def squared(self, x):
    return x * x


def bent(x):
    return torch.tanh(x)


@pytest.mark.parametrize("name", ["forward", "turn"])
def test_a_class_that_somebody_changes_is_audited_anew(name, parted, ids, monkeypatch):
    """It is known by its code as it is, not by having been audited."""
    model = parted("y = self.turn(x)")
    cls = type(model.model.layers[0].mlp)
    cls.turn = lambda self, x: 2 * x
    check(model)
    with monkeypatch.context() as patch:
        patch.setattr(cls, name, squared)
        with pytest.raises(lrp_fast.UnsupportedModuleError, match="Part, which multiplies"):
            check(model)
    check(model)


def test_a_function_that_somebody_replaces_is_seen(ids, tiny, monkeypatch):
    from transformers.models.llama import modeling_llama

    model = tiny("llama")
    check(model)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "rotate_half", bent)
        with pytest.raises(lrp_fast.UnsupportedModuleError, match="LlamaAttention, which computes tanh"):
            check(model)
    check(model)


def test_embeddings_that_are_no_module_are_refused():
    config = transformers.PerceiverConfig(
        num_latents=4, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=1, vocab_size=30,
        num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=20,
    )  # fmt: skip
    with pytest.raises((lrp_fast.UnsupportedModuleError, ValueError)):
        check(transformers.PerceiverForMaskedLM(config).eval())


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
    lrp_fast.hf.forms._read.clear()
    try:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=97
        ))  # fmt: skip
        with pytest.raises(lrp_fast.UnsupportedModuleError, match=r"a Llama(MLP|RMSNorm), which (multiplies|computes)"):
            check(model.eval())
    finally:
        lrp_fast.hf.forms._read.clear()
