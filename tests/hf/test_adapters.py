"""LoRA adapters of peft, not merged: relevance is that of the merged model."""

import copy
import inspect

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.pytorch_utils import Conv1D

import lrp_fast
from lrp_fast import GraphSpec, Memory, Rules, UnsupportedModuleError, attribute, patched, reference
from lrp_fast.hf import coverage, layer_sizes, weight_bytes, weights

peft = pytest.importorskip("peft")

RULES = [Rules("attnlrp"), Rules("cp"), Rules("attnlrp", 0.01, 0.1, 0.01, 0.1), Rules("gradient", epsilon=0.01)]
TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "qwen3": ["k_proj", "gate_proj", "embed_tokens"],
}


def adapted(model, seed=0, name="default", **given):
    """``model`` with random adapters, large enough to matter, that count in the model's dtype."""
    given = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"} | given
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**given), adapter_name=name, autocast_adapter_dtype=False)
    fill(wrapped, seed)
    return wrapped.eval()


def fill(wrapped, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in wrapped.named_parameters():
            if "lora_" in path:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def merged(wrapped):
    return copy.deepcopy(wrapped).merge_and_unload().eval()


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


def least(model, rule, **given):
    return Memory(host_budget=lrp_fast.plan(model, 23, rule=rule, **given).least["cpu"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.epsilon}-{rule.gamma}")
@pytest.mark.parametrize("family", TARGETS)
def test_relevance_is_that_of_the_merged_model(family, rule, tiny, ids):
    model = adapted(tiny(family, torch.float64), target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
    plain = merged(model)
    truth = attribute(plain, ids, 3, 5, rule=rule)
    base = attribute(tiny(family, torch.float64), ids, 3, 5, rule=rule)
    assert gap(base.layers, truth.layers) > 0.1, "the adapters do nothing"
    for memory in (None, least(model, rule)):
        found = attribute(model, ids, 3, 5, rule=rule, memory=memory)
        assert gap(found.layers, truth.layers) <= 1e-12 and found.value == pytest.approx(truth.value, rel=1e-12)


@pytest.mark.shows("adapters")
def test_every_family_with_adapters(family, tiny, ids):
    """On its attention's linear maps, whatever they are called, and on the MLP's where there are no experts."""
    model = tiny(family, torch.float64)
    linears = [path for path, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    if any(path.endswith(".experts") for path, _ in model.named_modules()):
        linears = [path for path in linears if ".mlp." not in path]  # peft takes their names for the experts' as well
    linears = {path.split(".")[-1] for path in linears}
    model = adapted(model, target_modules=sorted(linears - {"lm_head"}), fan_in_fan_out=family == "gpt2")
    truth, base = attribute(merged(model), ids, 3, 5), attribute(tiny(family, torch.float64), ids, 3, 5)
    assert gap(base.layers, truth.layers) > 0.1, "the adapters do nothing"
    for memory in (None, least(model, "attnlrp")):
        found = attribute(model, ids, 3, 5, memory=memory)
        assert gap(found.layers, truth.layers) <= 1e-12 and found.value == pytest.approx(truth.value, rel=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.epsilon}-{rule.gamma}")
@pytest.mark.parametrize("family", ["llama", "qwen3"])  # with biases, and without
def test_edges_are_those_of_the_merged_model(family, rule, tiny, ids):
    model = adapted(tiny(family, torch.float64), target_modules=["k_proj", "v_proj", "up_proj"])
    spec = GraphSpec(topk=10**6)
    truth = attribute(merged(model), ids, 3, 5, rule=rule, graph=spec).graph
    for memory in (None, least(model, rule, graph=spec)):
        found = attribute(model, ids, 3, 5, rule=rule, graph=spec, memory=memory).graph
        assert all(gap(found.dense(layer), truth.dense(layer)) <= 1e-12 for layer in range(3))


def test_the_way_of_one_backward_pass(tiny, ids):
    model = adapted(tiny("llama"), target_modules=TARGETS["llama"])
    before = [(path, sorted(part.__dict__)) for path, part in model.named_modules()]
    with torch.no_grad():
        own = model(ids).logits
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        with torch.no_grad():
            assert torch.equal(model(ids).logits, own)
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[3] - logits[5]).backward()
    found = attribute(model, ids, 3, 5)
    assert gap((x * x.grad).sum(-1)[0].detach(), found.relevance) <= 1e-5
    assert [(path, sorted(part.__dict__)) for path, part in model.named_modules()] == before
    assert all(p.grad is None for path, p in model.named_parameters())


@pytest.mark.parametrize("given", [{"use_rslora": True}, {"lora_bias": True}, {"r": 8, "rank_pattern": {"v_proj": 2}}])
@pytest.mark.parametrize("rule", RULES[1:3], ids=lambda rule: rule.name)
def test_kinds_of_lora(given, rule, tiny, ids):
    model = adapted(tiny("llama", torch.float64), target_modules=["q_proj", "v_proj", "down_proj"], **given)
    truth = attribute(merged(model), ids, 3, 5, rule=rule)
    found = attribute(model, ids, 3, 5, rule=rule, graph=GraphSpec(topk=4))
    assert gap(found.layers, truth.layers) <= 1e-12


def test_the_active_adapters_count(tiny, ids):
    """Several at once, one of them, none, and some that are merged."""
    plain = tiny("llama", torch.float64)
    model = adapted(copy.deepcopy(plain), target_modules=["v_proj", "up_proj"], name="one")
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM")
    model.add_adapter("two", config, autocast_adapter_dtype=False)
    fill(model, 1)
    results = {}
    for names in (["one"], ["two"], ["one", "two"]):
        model.base_model.set_adapter(names)
        results[tuple(names)] = found = attribute(model.eval(), ids, 3, 5).layers
        assert gap(found, attribute(merged(model), ids, 3, 5).layers) <= 1e-12
    assert gap(results["one",], results["two",]) > 0.1 and gap(results["one", "two"], results["one",]) > 0.1
    with model.disable_adapter():
        assert gap(attribute(model, ids, 3, 5).layers, attribute(plain, ids, 3, 5).layers) <= 1e-12
    model.merge_adapter(["one", "two"])
    assert gap(attribute(model, ids, 3, 5).layers, results["one", "two"]) <= 1e-12


def test_an_adapter_that_transformers_holds_itself(tiny, ids):
    """As ``from_pretrained`` of an adapter's folder makes it, without a PeftModel around."""
    if Version(MIN_PEFT_VERSION) > Version(peft.__version__):
        pytest.skip(f"transformers {transformers.__version__} wants a newer peft than {peft.__version__}")
    model = tiny("llama", torch.float64)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS["llama"][:-1]))
    fill(model.double())
    wrapped = adapted(tiny("llama", torch.float64), target_modules=TARGETS["llama"][:-1])
    truth = attribute(merged(wrapped), ids, 3, 5)
    assert gap(attribute(model.eval(), ids, 3, 5).layers, truth.layers) <= 1e-12


def test_modules_that_are_saved_whole(tiny, ids):
    model = adapted(
        tiny("llama", torch.float64), target_modules=["v_proj"], modules_to_save=["lm_head", "embed_tokens"]
    )
    with torch.no_grad():
        for name in ("lm_head", "embed_tokens"):
            (part,) = (part for path, part in model.named_modules() if path.endswith(f"{name}.modules_to_save.default"))
            part.weight += 0.2 * torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(3))
    truth = attribute(merged(model), ids, 3, 5)
    assert gap(attribute(model, ids, 3, 5).layers, truth.layers) <= 1e-12
    assert gap(truth.layers, attribute(tiny("llama", torch.float64), ids, 3, 5).layers) > 0.1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.epsilon}-{rule.gamma}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_with_adapters_in_float32(dtype, rule, tiny, ids, within_rounding):
    """As peft has them. Held against the definition map by map: a whole model multiplies what 16 bits round."""
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS["llama"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("llama", dtype), config).eval()
    fill(model)
    part, generator = model.base_model.model.model.layers[0].mlp.up_proj, torch.Generator().manual_seed(0)
    assert part.lora_A["default"].weight.dtype == torch.float32
    x, g = (torch.randn(9, n, generator=generator).to(dtype) for n in (64, 96))
    x.requires_grad_()
    with patched(model, rule):
        found = torch.autograd.grad(part(x), x, g)[0]
    delta = 1.5 * part.lora_B["default"].weight.double() @ part.lora_A["default"].weight.double()
    given = g.double(), x.detach().double(), part.weight.double() + delta, part.bias.double()
    plain, truth = (
        reference.linear_backward(*(t.to(one) for t in given), epsilon=rule.epsilon, gamma=rule.gamma).detach()
        for one in (dtype, torch.float64)
    )
    within_rounding(found, plain, truth, terms=64 + 96)
    for memory in (None, least(model, rule, graph=GraphSpec(topk=4))):
        found = attribute(model, ids, 3, 5, rule=rule, graph=GraphSpec(topk=4), memory=memory)
        assert torch.isfinite(found.layers).all()


@pytest.mark.parametrize("form", ["nf4", "llm.int8", "int8"])
def test_adapters_on_quantised_layers(form, tiny, ids, tmp_path, load_quantised):
    """As users load them: quantised, then adapted."""
    tiny("llama", intermediate_size=128).save_pretrained(tmp_path)
    model = load_quantised(tmp_path, form)
    model = adapted(model, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    assert sum(type(part).__module__.startswith("peft.tuners.lora") for part in model.modules()) >= 12
    plain = copy.deepcopy(model.base_model.model).requires_grad_(False)  # one plain linear map each
    for path, part in list(model.base_model.model.named_modules()):
        if path.endswith("_proj"):
            part.get_submodule("base_layer" if hasattr(part, "base_layer") else "").support_avx512bf16_for_cpu = False
            assert weights.mixes_tokens(part) == (form == "llm.int8")
            out, inner = weights.shape(part)
            new = nn.Linear(inner, out)
            new.weight = nn.Parameter(library_matrix(part))
            new.bias = weights.bias(part)
            plain.set_submodule(path, new)
    for rule in RULES[:3]:
        found = attribute(model, ids, 3, 5, rule=rule).layers
        assert gap(attribute(model, ids, 3, 5, rule=rule, memory=least(model, rule)).layers, found) <= 1e-4
        truth = attribute(plain.eval(), ids, 3, 5, rule=rule).layers
        assert gap(found, truth) <= (0.5 if form == "llm.int8" else 1e-4)  # which rounds activations


def library_matrix(part):
    """What peft would make of the adapters, on what the library that quantised the base layer dequantises."""
    from peft.utils.integrations import dequantize_module_weight

    if not hasattr(part, "base_layer"):
        return dequantize_module_weight(part).detach().float()
    return (dequantize_module_weight(part.base_layer) + part.get_delta_weight("default")).detach().float()


def test_a_plan_counts_the_maps_once(tiny):
    plain = tiny("llama")
    model = adapted(copy.deepcopy(plain), target_modules=TARGETS["llama"])
    (size, *_), (expected, *_) = layer_sizes(model), layer_sizes(plain)
    assert size._replace(unpacked=0) == expected and size.unpacked == 64 * 96 * 4
    assert weight_bytes(model) > weight_bytes(plain)
    assert lrp_fast.plan(model, 23).forward_flops == lrp_fast.plan(plain, 23).forward_flops


def test_the_doctor_counts_an_adapted_map_as_one(tiny):
    found = coverage(adapted(tiny("llama"), target_modules=["q_proj", "v_proj"]))
    assert all(one.rule for one in found)
    (entry,) = [one for one in found if "adapted" in one.rule]
    assert (entry.name, entry.count) == ("Linear", 6)
    assert not any("lora_A" in one.path for one in found)


# kind: its config class, and what that needs; each can be merged
OTHERS = {
    "dora": ("LoraConfig", {"use_dora": True}),
    "kasa": ("LoraConfig", {"kasa_config": ("KasaConfig", {})}),
    "trainable tokens with lora": ("LoraConfig", {"trainable_token_indices": [1, 60]}),
    "parameters": ("LoraConfig", {"target_modules": ["v_proj"], "target_parameters": ["mlp.up_proj.weight"]}),
    "ia3": ("IA3Config", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": ("LoHaConfig", {}),
    "lokr": ("LoKrConfig", {}),
    "adalora": ("AdaLoraConfig", {"total_step": 10}),
    "vera": ("VeraConfig", {"target_modules": ["q_proj"]}),
    "oft": ("OFTConfig", {"oft_block_size": 16, "r": 0}),
    "ln_tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "hra": ("HRAConfig", {}),
    "fourierft": ("FourierFTConfig", {"n_frequency": 10}),
    "trainable tokens": ("TrainableTokensConfig", {"token_indices": [1, 60], "target_modules": ["embed_tokens"]}),
    "randlora": ("RandLoraConfig", {}),
    "vblora": ("VBLoRAConfig", {"vector_length": 16, "num_vectors": 8}),
    "miss": ("MissConfig", {"r": 8}),
    "shira": ("ShiraConfig", {"r": 2}),
}
MERGE = r"(merge_and_unload of the peft.PeftModel)"


def config_of(name, given):
    if not hasattr(peft, name):
        pytest.skip("this peft does not have it")
    given = {key: config_of(*one) if isinstance(one, tuple) else one for key, one in given.items()}
    nested = "task_type" not in inspect.signature(getattr(peft, name)).parameters
    if not nested:
        given = {"target_modules": ["v_proj", "up_proj"], "task_type": "CAUSAL_LM"} | given
    return getattr(peft, name)(**{key: value for key, value in given.items() if value is not None})


def trained(model, config):
    """``model`` with adapters that do something."""
    wrapped, generator = peft.get_peft_model(model, config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return wrapped


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_adapters_are_merged_first(kind, tiny, ids):
    name, given = OTHERS[kind]
    plain = tiny("llama", attention_bias=False, mlp_bias=False)
    model = trained(copy.deepcopy(plain), config_of(name, given))
    with torch.no_grad():
        own = model(input_ids=ids).logits
        assert gap(own, plain(ids).logits) > 1e-2, "the adapters do nothing"
    for call in (lambda: attribute(model, ids), lambda: lrp_fast.plan(model, 23), lambda: patched(model).__enter__()):
        with pytest.raises(UnsupportedModuleError, match="module 'base_model.*merge them first") as refused:
            call()
        assert str(refused.value).endswith(MERGE) and "register" not in str(refused.value)
    assert {MERGE} == {one.mend[-len(MERGE) :] for one in coverage(model) if one.rule is None}
    mended = model.merge_and_unload().eval()
    assert gap(mended(ids).logits.detach(), own) <= 1e-5
    assert attribute(mended, ids, 3).value == pytest.approx(own[0, -1, 3].item(), rel=1e-4)


def test_a_mixture_of_kinds_is_merged_first(tiny, ids):
    first = config_of("LoraConfig", {"init_lora_weights": False})
    model = peft.get_peft_model(tiny("llama"), first, mixed=True).eval()
    model.add_adapter("two", config_of("LoHaConfig", {"init_weights": False}))
    model.set_adapter(["default", "two"])
    own = model(input_ids=ids).logits.detach()
    with pytest.raises(UnsupportedModuleError, match="the model itself, a PeftMixedModel, has adapters th") as no:
        attribute(model.eval(), ids)
    assert str(no.value).endswith(MERGE)
    mended = model.merge_and_unload().eval()
    assert gap(mended(ids).logits.detach(), own) <= 1e-5
    assert attribute(mended, ids, 3).value == pytest.approx(own[0, -1, 3].item(), rel=1e-4)


@pytest.mark.parametrize(("biases", "lora"), [(False, False), (True, False), (False, True)])
def test_a_bias_is_merged_into_a_bias(biases, lora, tiny, ids, monkeypatch):
    """peft cannot give a layer one. Of LoRA this matters where the layer is of a kind that cannot be read."""
    if lora:
        monkeypatch.setattr(weights, "_ADAPTABLE", ())
    name, given = ("LoraConfig", {"lora_bias": True}) if lora else ("BeftConfig", {})
    plain = tiny("llama", attention_bias=biases, mlp_bias=biases)
    model = trained(plain, config_of(name, given))
    own = model(input_ids=ids).logits.detach()
    with pytest.raises(UnsupportedModuleError, match="adapters") as refused:
        attribute(model, ids)
    if biases:
        assert str(refused.value).endswith(MERGE)
        mended = model.merge_and_unload().eval()
        assert attribute(mended, ids, 3).value == pytest.approx(own[0, -1, 3].item(), rel=1e-4)
    else:
        why = "as peft cannot merge a bias into a layer that has none, load the model without them"
        assert str(refused.value).endswith(why)
        with pytest.raises((ValueError, RuntimeError), match="the base layer has no bias|Base layer has no bias"):
            model.merge_and_unload()


def around(kind, model, **given):
    """``model`` with adapters of LoRA, in peft's class for another task, or for several kinds."""
    task = {"mixed": "CAUSAL_LM"}.get(kind, kind)
    model = peft.get_peft_model(model, config_of("LoraConfig", {"task_type": task} | given), mixed=kind == "mixed")
    fill(model)
    return model.eval()


@pytest.mark.parametrize("kind", ["FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", "mixed"])
def test_plain_lora_for_another_task_is_passed_without_that(kind, tiny, ids):
    model = around(kind, tiny("llama"))
    mend = "model.base_model.model" if kind == "mixed" else "model.get_base_model()"
    for call in (lambda: attribute(model, ids), lambda: lrp_fast.plan(model, 23), lambda: patched(model).__enter__()):
        with pytest.raises(UnsupportedModuleError, match="^the model itself, a Peft.*, holds plain LoRA") as no:
            call()
        assert str(no.value).endswith(f"pass {mend}, which keeps its adapters")
    found = attribute(model.base_model.model if kind == "mixed" else model.get_base_model(), ids, 3, 5).layers
    assert gap(found, attribute(merged(model), ids, 3, 5).layers) <= 1e-4
    assert gap(found, attribute(tiny("llama"), ids, 3, 5).layers) > 0.1


@pytest.mark.parametrize("kind", ["FEATURE_EXTRACTION", "mixed"])
def test_other_adapters_for_another_task_are_merged_first(kind, tiny, ids):
    model = around(kind, tiny("llama"), use_dora=True)
    own = model(input_ids=ids).logits.detach()
    with pytest.raises(UnsupportedModuleError, match="of a kind that is not plain LoRA .DoraL.*: merge them fi") as no:
        attribute(model, ids)
    assert str(no.value).endswith(MERGE)
    mended = model.merge_and_unload().eval()
    assert attribute(mended, ids, 3).value == pytest.approx(own[0, -1, 3].item(), rel=1e-4)


def test_trained_prompts_for_another_task(tiny, ids):
    given = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 3, "target_modules": None}
    model = trained(tiny("llama"), config_of("PromptTuningConfig", given))
    with pytest.raises(UnsupportedModuleError, match=r"adds trained vectors .*: pass model.get_base_model\(\) to expl"):
        attribute(model, ids)
    assert attribute(model.get_base_model(), ids).layers.shape == (4, 23)


def test_another_kind_that_transformers_holds_itself(tiny, ids, tmp_path):
    """It cannot merge: the mend says who can."""
    model = trained(tiny("llama"), config_of(*OTHERS["ia3"]))
    own = model(input_ids=ids).logits.detach()
    model.save_pretrained(tmp_path)
    held = tiny("llama")
    held.load_adapter(tmp_path)
    assert gap(held.eval()(ids).logits.detach(), own) <= 1e-5
    with pytest.raises(UnsupportedModuleError, match="layers.0.self_attn.v_proj', a Linear, has adapters that are not"):
        attribute(held, ids)
    mended = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path).merge_and_unload().eval()
    assert attribute(mended, ids, 3).value == pytest.approx(own[0, -1, 3].item(), rel=1e-4)


UNMERGEABLE = {
    "alora": ("LoraConfig", {"alora_invocation_tokens": [5]}),
    "poly": ("PolyConfig", {}),
    "lily": ("LilyConfig", {}),
    "adaption": ("AdaptionPromptConfig", {"adapter_len": 3, "adapter_layers": 1, "target_modules": None}),
    "shadow": ("ShadowConfig", {"target_modules": None}),
}


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_what_peft_cannot_merge_is_said_so(kind, tiny, ids):
    name, given = UNMERGEABLE[kind]
    model = trained(tiny("llama"), config_of(name, given))
    why = "as peft cannot merge them into the weights, load the model without them$"
    with pytest.raises(UnsupportedModuleError, match=why):
        attribute(model, ids)
    with pytest.raises((NotImplementedError, AttributeError)):
        model.merge_and_unload()
    assert attribute(tiny("llama"), ids).layers.shape == (4, 23)


def test_a_mixture_of_loras_is_not_merged(tiny, ids, tmp_path):
    """X-LoRA weighs its adapters anew for each token; merging them would be something else."""
    if not hasattr(peft, "XLoraConfig"):
        pytest.skip("this peft does not have it")
    for name in ("one", "two"):
        adapted(tiny("llama"), target_modules=["v_proj"]).save_pretrained(tmp_path / name)
    base = tiny("llama")
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=64, adapters={name: str(tmp_path / name) for name in ("one", "two")}
    )
    base.config.use_cache = False
    model = peft.get_peft_model(base, config).eval()
    with pytest.raises(UnsupportedModuleError, match="a XLoraModel, .* as peft cannot merge them into the weights"):
        attribute(model, ids)


PROMPTS = {
    "prompt": ("PromptTuningConfig", {}),
    "p": ("PromptEncoderConfig", {"encoder_hidden_size": 16}),
    "prefix": ("PrefixTuningConfig", {}),
    "multitask": ("MultitaskPromptTuningConfig", {"num_tasks": 2}),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_trained_prompts_are_no_tokens(kind, tiny, ids):
    name, given = PROMPTS[kind]
    plain = tiny("llama")
    model = trained(copy.deepcopy(plain), config_of(name, given | {"num_virtual_tokens": 3, "target_modules": None}))
    why = (
        "module 'prompt_encoder.default', a .*, adds trained vectors that are no tokens of the prompt, which lrp_fast "
        r"has no rule for: pass model.get_base_model\(\) to explain the model without them$"
    )
    for call in (lambda: attribute(model, ids), lambda: lrp_fast.plan(model, 23)):
        with pytest.raises(UnsupportedModuleError, match=why):
            call()
    assert torch.equal(attribute(model.get_base_model(), ids, 3, 5).layers, attribute(plain, ids, 3, 5).layers)


@pytest.mark.parametrize(
    "given",
    [
        {"use_rslora": True},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1]},
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"v_proj": 12}},
        {"bias": "lora_only"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_is_plain_lora_under_another_name(given, tiny, ids):
    plain = tiny("llama")
    model = trained(copy.deepcopy(plain), config_of("LoraConfig", given))
    own = model(input_ids=ids).logits.detach()
    assert gap(own, plain(ids).logits.detach()) > 1e-2, "the adapters do nothing"
    found = attribute(model, ids, 3, 5).layers
    mended = copy.deepcopy(model).merge_and_unload().eval()
    assert gap(mended(ids).logits.detach(), own) <= 1e-5
    assert gap(found, attribute(mended, ids, 3, 5).layers) <= 1e-4


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_classifier_with_adapters(task, tiny, ids):
    config = copy.deepcopy(tiny("llama").config)
    config.num_labels = 1
    head = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}[task]
    base = getattr(transformers, f"LlamaFor{head}")(config).eval()
    model = trained(base, config_of("LoraConfig", {"task_type": task}))
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        model(inputs_embeds=x).logits.sum().backward()
    mended = copy.deepcopy(model).merge_and_unload().eval()
    y = x.detach().requires_grad_()
    with patched(mended):
        mended(inputs_embeds=y).logits.sum().backward()
    assert gap(x.grad, y.grad) <= 1e-4
    found = attribute(model, ids)
    assert found.value == pytest.approx(model(input_ids=ids).logits.flatten()[-1].item(), rel=1e-4)
    assert gap(found.layers, attribute(mended, ids).layers) <= 1e-4
    (batched,) = lrp_fast.attribute_batch(model, [ids])
    assert torch.equal(batched.layers, found.layers)


@pytest.mark.parametrize("where", ["all", "a layer", "an adapter"])
def test_weights_that_are_offloaded_are_refused(where, tiny, ids, tmp_path):
    """Each part of an adapted map has them only while it runs; by then nobody has asked for the matrix."""
    accelerate = pytest.importorskip("accelerate")
    model = adapted(tiny("llama", torch.float64), target_modules=["v_proj", "up_proj"])
    part, cpu = model.base_model.model.model.layers[1].self_attn.v_proj, torch.device("cpu")
    if where == "all":
        accelerate.cpu_offload(model, execution_device=cpu)
    elif where == "a layer":
        inner = model.base_model.model
        others = (inner.model.embed_tokens, inner.model.norm, inner.model.rotary_emb, inner.lm_head)
        paths = {one: path for path, one in model.named_modules()}
        places = {paths[one]: "cpu" for one in (*others, *inner.model.layers)} | {paths[inner.model.layers[1]]: "disk"}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    else:
        accelerate.cpu_offload(part.lora_B, execution_device=cpu)
    layer = 0 if where == "all" else 1
    why = f"layers.{layer}.self_attn.v_proj', a Linear, has adapters, and weights that accelerate loads only while"
    with pytest.raises(UnsupportedModuleError, match=why):
        attribute(model, ids, 3, 5)
    with pytest.raises(UnsupportedModuleError, match=why), patched(model):
        pass
    with pytest.raises(UnsupportedModuleError, match=why), model.disable_adapter():
        lrp_fast.plan(model, 23)


def test_merged_adapters_may_be_offloaded(tiny, ids):
    accelerate = pytest.importorskip("accelerate")
    model = adapted(tiny("llama", torch.float64), target_modules=["v_proj", "up_proj"])
    truth = attribute(model, ids, 3, 5)
    model = accelerate.cpu_offload(merged(model), execution_device=torch.device("cpu"))
    assert gap(attribute(model, ids, 3, 5).layers, truth.layers) <= 1e-12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_stay_what_they_were(family, tiny):
    """A backward pass asks for them long after the module ran."""
    name = {"llama": "v_proj", "gpt2": "c_attn"}[family]
    model = adapted(tiny(family), target_modules=[name], fan_in_fan_out=family == "gpt2")
    (part, *_) = (part for path, part in model.named_modules() if path.endswith(name))
    rows = weights.rows(part)
    before = rows(2, 9)
    for inner in (part.base_layer, part.lora_A["default"], part.lora_B["default"]):
        inner.weight = nn.Parameter(torch.empty_like(inner.weight, device="meta"))
    assert torch.equal(rows(2, 9), before)


def test_dropout_of_a_training_model_is_refused(tiny, ids):
    model = adapted(tiny("llama"), target_modules=["v_proj"])
    model.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"), patched(model):
        pass


def test_a_hook_on_a_part_of_an_adapted_map_is_refused(tiny, ids):
    model = adapted(tiny("llama"), r=4, lora_alpha=6, target_modules=["q_proj"])
    part = model.base_model.model.model.layers[1].self_attn.q_proj
    handle = part.lora_A["default"].register_forward_hook(lambda *_: None)
    with pytest.raises(
        RuntimeError, match="a hook on Linear, a part of a linear map with adapters, would be passed over"
    ):
        attribute(model, ids)
    handle.remove()
    part.register_forward_hook(lambda m, a, out: out * 2)  # on the whole it counts
    assert (
        attribute(model, ids).layers
        != attribute(adapted(tiny("llama"), r=4, lora_alpha=6, target_modules=["q_proj"]), ids).layers
    ).any()
