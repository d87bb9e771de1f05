"""Models that read images or sounds, given text alone: relevance is that of their language model alone."""

import copy
import sys

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import GraphSpec, Memory, UnsupportedModuleError, attribute, patched
from lrp_fast.hf import coverage
from lrp_fast.hf.families import at_rest, handled
from lrp_fast.hf.wrappers import WRAPPERS

# family of the language model: what differs in it from `tiny`'s, as wrappers leave out what stands behind the head
PLAIN = {"cohere": {"logit_scale": 1.0}, "granite": {"logits_scaling": 1.0}, "gemma3": {"final_logit_softcapping": None}}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 28, "patch_size": 14}
SIGLIP = {"vision_config": {"model_type": "siglip_vision_model"} | VISION}

# wrapper: (families of language models to try with it, what else its config needs to be small, or to be at all)
CASES = {
    "audioflamingo3": (["qwen2"], {}),
    "aya_vision": (["cohere"], SIGLIP),
    "cohere2_vision": (["cohere"], SIGLIP),
    "deepseek_vl": (["llama"], SIGLIP),
    "deepseek_vl_hybrid": (["llama"], {}),
    "exaone4_5": (["llama"], {}),
    "fast_vlm": (["qwen2"], SIGLIP),
    "fun_asr_nano": (["qwen3"], {"adaptor_config": SMALL | {"hidden_size": 64}}),
    "gemma3": (["gemma3"], SIGLIP),
    "glmasr": (["llama"], {}),
    "got_ocr2": (["qwen2"], {}),
    "granite_speech": (["granite"], {}),
    "granite_speech_plus": (["granite"], {}),
    "idefics2": (["mistral"], {"vision_config": VISION}),
    "idefics3": (["llama"], {"vision_config": VISION}),
    "internvl": (["qwen3"], {}),
    "janus": (["llama"], {}),
    "kimi_k25": (["llama"], {}),
    "lighton_ocr": (["qwen3"], {}),
    "llava": (["llama", "phi3", "gpt_neox"], SIGLIP),
    "llava_next": (["mistral"], SIGLIP),
    "llava_next_video": (["llama"], SIGLIP),
    "llava_onevision": (["qwen2"], SIGLIP),
    "mistral3": (["mistral"], {}),
    "moss_transcribe_diarize": (["qwen3"], {}),
    "musicflamingo": (["qwen2"], {}),
    "ovis2": (["qwen2"], {}),
    "paligemma": (["gemma", "gemma2"], SIGLIP),
    "perception_lm": (["llama"], SIGLIP),
    "qianfan_ocr": (["qwen3"], {}),
    "qwen2_audio": (["qwen2"], {}),
    "qwen3_asr": (["qwen3"], {}),
    "smolvlm": (["llama"], {"vision_config": VISION}),
    "vibevoice_asr": (["qwen2"], {}),
    "video_llama_3": (["qwen2"], {}),
    "video_llava": (["llama"], {}),
    "vipllava": (["llama"], {"vision_config": VISION}),
    "voxtral": (["llama"], {}),
}
NEWER = transformers.__version__ > "5.0.0"
BOTH_WAYS = "reads its prompt in both directions in this release of transformers"


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


def least(model, **given):
    return Memory(host_budget=lrp_fast.plan(model, 23, **given).least["cpu"])


def class_of(home):
    return getattr(transformers, f"{WRAPPERS[home]}ForConditionalGeneration", None)


@pytest.fixture
def wrapped(tiny):
    """``wrapped(home, family)``: (the wrapper, its language model alone), of the same weights. What is at rest has
    none worth the name."""

    def build(home, family, dtype=torch.float64, **settings):
        if class_of(home) is None:
            pytest.skip("this transformers does not have it")
        given = copy.deepcopy(CASES[home][1])
        alone = tiny(family, dtype, **PLAIN.get(family, {}) | settings)
        if home in ("aya_vision", "fast_vlm", "perception_lm", "llava", "paligemma", "gemma3"):
            given["vision_config"] = transformers.SiglipVisionConfig(**VISION)
            given["vision_config"].model_args = {"embed_dim": 16}  # as timm's have it
        config = class_of(home).config_class(text_config=copy.deepcopy(alone.config), **given)
        for name in config.sub_configs:
            for depth in ("num_hidden_layers", "encoder_layers", "depth", "num_layers"):
                if "text" not in name and isinstance(getattr(getattr(config, name), depth, None), int):
                    setattr(getattr(config, name), depth, 1)
        if family == "gemma2":
            config._attn_implementation = "eager"  # as the language model alone
        with torch.device("meta"):
            model = class_of(home)(config)
        model = model.to(dtype).to_empty(device="cpu")
        inner = model.model if hasattr(model, "model") else model
        name = "text_model" if hasattr(inner, "text_model") else "language_model"
        if hasattr(model, "lm_head"):
            setattr(inner, name, alone.base_model)
            model.lm_head = alone.get_output_embeddings()
        else:
            setattr(inner, name, alone)
        return model.eval(), alone

    return build


def relevance(model, ids, rule):
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):
        logits = model(inputs_embeds=x).logits
        (logits[0, -1, 3] - logits[0, -1, 5]).backward()
    return logits.detach(), (x * x.grad).sum(-1)[0].detach()


def test_all_that_are_listed_are_tried():
    assert list(CASES) == list(WRAPPERS)


@pytest.mark.parametrize(("home", "family"), [(home, family) for home in CASES for family in CASES[home][0]])
def test_text_alone_is_explained_as_by_the_language_model_alone(home, family, wrapped, ids):
    model, alone = wrapped(home, family)
    if home == "paligemma" and not NEWER:
        with pytest.raises(UnsupportedModuleError, match=BOTH_WAYS):
            attribute(model, ids)
        return
    with torch.no_grad():
        own = model(input_ids=ids).logits
    # float32 rotary tables notice that PaliGemma counts positions from 1
    allowed, close = (1e-5, 3e-6) if home == "paligemma" else (1e-14, 1e-12)
    assert gap(own, alone(ids).logits.detach()) <= allowed
    for rule in ("attnlrp", "cp"):
        truth = attribute(alone, ids, 3, 5, position=[4, 22], rule=rule)
        for memory in (None, least(model, rule=rule)):
            tiers = lrp_fast.plan(model, 23, rule=rule, memory=memory).tiers
            assert ("graph" in tiers) == (memory is None)
            found = attribute(model, ids, 3, 5, position=[4, 22], rule=rule, memory=memory)
            assert gap(found.layers, truth.layers) <= close
    logits, direct = relevance(model, ids, "attnlrp")
    assert gap(logits, own) <= 1e-5  # float64 norms
    assert gap(direct, attribute(model, ids, 3, 5).relevance) <= close
