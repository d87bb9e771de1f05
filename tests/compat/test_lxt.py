"""LXT's entry point: what `patched` gives, nothing left behind, and what LXT itself gives to the same script."""

import copy
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import modeling_utils
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel
from transformers.models.qwen2 import modeling_qwen2

import lrp_fast
from lrp_fast import Rules, UnsupportedModuleError, patched
from lrp_fast.compat.lxt import attnLRP, cp_LRP, monkey_patch, unpatch


@pytest.fixture
def patch():
    """`monkey_patch`, taken back in the end."""
    modules = []

    def call(module, *args, **named):
        monkey_patch(module, *args, **named)
        modules.append(module)

    yield call
    for module in modules:
        unpatch(module)


def modeling_of(model):
    return importlib.import_module(type(model).__module__)


def relevance(model, ids):
    """As LXT's users compute it."""
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=x).logits[0, -1]
    (logits[3] - logits[5]).backward()
    return (x * x.grad).detach()


def under(rules, model, ids):
    with patched(model, rules):
        return relevance(model, ids)


def contents(module):
    return {name: dict(vars(thing)) for name, thing in vars(module).items() if isinstance(thing, type)}


def close(found, truth):
    return (found - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("patch_map", [None, cp_LRP, Rules("attnlrp", 0.1, 0.1, 0.1, 0.1)])
def test_a_script_gives_what_patched_gives(family, patch_map, patch, tiny, ids):
    model = tiny(family, torch.float64)
    truth, plain = under(patch_map or attnLRP, model, ids), under("gradient", model, ids)
    patch(modeling_of(model), patch_map)
    made_afterwards = tiny(family, torch.float64)
    for one in (model, made_afterwards):
        found = relevance(one, ids)
        assert close(found, truth)
    assert (found - plain).abs().max() > 1e-2 * truth.abs().max()


def test_unpatch_restores_every_class_and_every_bit(tiny, ids):
    model = tiny("llama")
    before, plain, instance = contents(modeling_llama), relevance(model, ids), [vars(m).keys() for m in model.modules()]
    monkey_patch(modeling_llama)
    assert contents(modeling_llama) != before
    assert not torch.equal(relevance(model, ids), plain)
    unpatch(modeling_llama)
    assert contents(modeling_llama) == before
    assert torch.equal(relevance(model, ids), plain)
    assert [vars(m).keys() for m in model.modules()] == instance


def test_other_modules_are_untouched(patch, tiny, ids):
    other = tiny("qwen2")
    places = (modeling_qwen2, modeling_utils, nn)
    plain, before, base = relevance(other, ids), list(map(contents, places)), dict(vars(LlamaPreTrainedModel))
    patch(modeling_llama)
    assert list(map(contents, places)) == before and vars(LlamaPreTrainedModel) == base
    assert torch.equal(relevance(other, ids), plain)


def test_two_modules_may_be_patched_each_by_its_rule(patch, tiny, ids):
    one, two = tiny("llama"), tiny("qwen2")
    truth = under("attnlrp", one, ids), under("cp", two, ids)
    patch(modeling_llama)
    patch(modeling_qwen2, patch_map=cp_LRP)
    assert torch.equal(relevance(one, ids), truth[0]) and torch.equal(relevance(two, ids), truth[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_and_no_dropout(reentrant, patch, tiny, ids):
    model = tiny("gpt2", torch.float64)
    assert model.config.resid_pdrop and model.config.attn_pdrop
    truth = under("attnlrp", model, ids)
    patch(modeling_of(model))
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    model.transformer.h[1].ln_2.register_forward_hook(lambda *_: runs.append(1))
    assert close(relevance(model, ids), truth)
    assert len(runs) == 2  # it did run again
    assert model.training and model.transformer.h[0].attn.resid_dropout.training


def test_copies_compute_with_their_own_weights(patch, tiny, ids):
    model = tiny("llama")
    patch(modeling_llama)
    relevance(model, ids)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    assert torch.equal(relevance(twin, ids), 2 * relevance(model, ids))


def test_hooked_by_accelerate_before(patch, tiny, ids):
    hooks = pytest.importorskip("accelerate.hooks")
    model = tiny("gemma2", torch.float64)
    truth = under("attnlrp", model, ids)
    hooks.add_hook_to_module(model, hooks.ModelHook())
    hooks.add_hook_to_module(model.model.layers[0], hooks.ModelHook())
    patch(modeling_of(model))
    assert close(relevance(model, ids), truth)


def test_blocks_of_patched_keep_their_own_rule(patch, tiny, ids):
    model = tiny("llama")
    truth = under("cp", model, ids)
    attributed = lrp_fast.attribute(model, ids, target=3, contrast=5, rule="cp").layers
    patch(modeling_llama)
    assert torch.equal(under("cp", model, ids), truth)
    assert torch.equal(lrp_fast.attribute(model, ids, target=3, contrast=5, rule="cp").layers, attributed)


def test_generation(patch, tiny, ids):
    model = tiny("llama")
    plain = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    patch(modeling_llama)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), plain)


def test_verbose_says_what_is_patched(patch, capsys):
    patch(modeling_llama)
    assert capsys.readouterr().out == ""
    patch(modeling_qwen2, verbose=True)
    assert "Patched Qwen2ForCausalLM\n" in capsys.readouterr().out


def test_twice_is_refused(patch):
    patch(modeling_llama)
    with pytest.raises(RuntimeError, match=r"modeling_llama is patched already: call unpatch first"):
        monkey_patch(modeling_llama)


def test_what_was_not_patched_is_not_unpatched():
    with pytest.raises(RuntimeError, match="modeling_llama is not patched"):
        unpatch(modeling_llama)


def test_somebody_elses_patch_above_ours_is_not_lost(patch, monkeypatch):
    patch(modeling_llama)
    with monkeypatch.context() as above:
        above.setattr(modeling_llama.LlamaModel, "forward", lambda self: None)
        with pytest.raises(RuntimeError, match=r"replaced LlamaModel.forward since: undo that first"):
            unpatch(modeling_llama)


importing = ModuleType("importing")
importing.LlamaForCausalLM = modeling_llama.LlamaForCausalLM  # but does not define it


@pytest.mark.parametrize("module", [modeling_bert, json, importing])
def test_modules_without_a_rule_are_refused(module):
    before = contents(module)
    with pytest.raises(ValueError, match=rf"{module.__name__} holds no model that a propagation rule covers"):
        monkey_patch(module)
    assert contents(module) == before


def test_a_model_without_a_rule_is_refused_when_it_is_called(patch, tiny, ids):
    model = tiny("llama")
    model.model.layers[1].mlp.act_fn = torch.nn.Softplus()
    patch(modeling_llama)
    with pytest.raises(UnsupportedModuleError, match="module 'model.layers.1.mlp.act_fn', a Softplus"):
        model(ids)


def test_arguments_of_other_kinds_are_refused():
    with pytest.raises(TypeError, match="takes a module, such as modeling_llama, not type"):
        monkey_patch(modeling_llama.LlamaForCausalLM)
    with pytest.raises(TypeError, match="patch_map must be attnLRP or cp_LRP .* not dict"):
        monkey_patch(modeling_llama, {modeling_llama.LlamaMLP: print})


# Pythons that have LXT: this one, for which transformers is told of a function that it has lost, and where it is named
# one with an older transformers that LXT was written for; benchmarks/peers/lxt_attribution.py says how to make that.
LXT_PYTHONS = {"beside": sys.executable, "apart": os.environ.get("LXT_PYTHON")}


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).with_name("lxt_script.py")
    spec = importlib.util.spec_from_file_location("lrp_fast_lxt_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("where", LXT_PYTHONS)
@pytest.mark.parametrize(
    "compared", ["llama attnLRP", "llama cp_LRP", "qwen2 attnLRP", "qwen3 attnLRP", "gemma3 attnLRP", "gpt2 attnLRP"]
)
def test_lxt_gives_the_same_to_the_same_script(compared, where, script, tiny, ids, tmp_path):
    (family, rule), python = compared.split(), LXT_PYTHONS[where]
    if python is None:
        pytest.skip("LXT_PYTHON names no Python with LXT and a transformers of its time")
    if where == "beside" and importlib.util.find_spec("lxt") is None:
        pytest.skip("LXT is not installed: `pip install --no-deps lxt==2.1` brings it")
    # Through a soft-cap on the logits LXT passes a plain gradient.
    model = tiny(family, **{"final_logit_softcapping": None} if family == "gemma3" else {})
    settings = json.loads(model.config.to_json_string(use_diff=True))
    case = {
        "family": family,
        "class": type(model).__name__,
        "config": {name: value for name, value in settings.items() if name not in NEWER},
        "rule": rule,
        "ids": ids.tolist(),
        "target": 3,
        "contrast": 5,
        "checkpointing": family == "llama",
    }
    files = [tmp_path / name for name in ("case.json", "weights.safetensors", "out.json")]
    files[0].write_text(json.dumps(case))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, files[1])
    try:
        ours = script.run("lrp_fast.compat.lxt", case, files[1])
    finally:
        unpatch(modeling_of(model))
    done = subprocess.run([python, script.__file__, *files], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    for one, other in zip(ours, json.loads(files[2].read_text()), strict=True):  # logits, relevance
        other = torch.tensor(other)
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("kind, limit", [("silu", 0.5), ("gelu", 0.5), ("gelu_tanh", 0.5)])
def test_where_ours_differs_from_lxt_on_purpose(kind, limit):
    """LXT's identity rule is the factor f(z) / (z + 1e-10), which at 0 is 0 and not f's limit: there, nothing passes.

    Apart from 0 it is off by 1e-10 / |z + 1e-10| of itself. The scripts above stay within 1e-4 because so small a z is
    rare, and adds next to nothing to z * g.
    """
    size = torch.logspace(-9, 2, 400, dtype=torch.float64)
    z = torch.cat([-size, torch.zeros(1, dtype=torch.float64), size]).requires_grad_()
    value = lrp_fast.ops.activation(z, kind)
    (factor,) = torch.autograd.grad(value.sum(), z)
    z = z.detach()
    theirs = value.detach() / (z + 1e-10)
    apart = z != 0
    bound = 1e-10 / (z + 1e-10).abs() * factor.abs()
    assert ((factor - theirs).abs() <= bound + 1e-12)[apart].all()
    assert factor[~apart] == limit and theirs[~apart] == 0


# What a config of transformers 5 says that an older one takes amiss: all of it default here.
NEWER = ("rope_parameters", "rope_scaling", "transformers_version", "architectures", "model_type", "dtype")
