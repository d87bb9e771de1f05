"""Models that read images or sounds, given text alone: relevance is that of their language model alone."""

import copy
import threading

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import lrp_fast
from lrp_fast import GraphSpec, Memory, UnsupportedModuleError, attribute, doctor, patched
from lrp_fast.cli import main
from lrp_fast.hf import coverage, give_language_model
from lrp_fast.hf.families import at_rest, handled
from lrp_fast.hf.wrappers import WRAPPERS
from tests import decoders
from tests.conftest import FAMILIES

# family of the language model: what differs in it from `tiny`'s, as wrappers leave out what stands behind the head
PLAIN = {
    "cohere": {"logit_scale": 1.0},
    "granite": {"logits_scaling": 1.0},
    "gemma3": {"final_logit_softcapping": None},
    "gemma4_text": {"enable_moe_block": False},  # the default takes no float64
}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 28, "patch_size": 14}
SIGLIP = {"vision_config": {"model_type": "siglip_vision_model"} | VISION}
QWEN = {"hidden_size": 64, "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "num_position_embeddings": 16}
IMAGES_OF_GEMMA4 = {"image_token_id": 94, "video_token_id": 95, "audio_token_id": 96}  # not in `ids`

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
    "gemma3n": (["gemma3n_text"], {"audio_config": {"hidden_size": 16, "conf_num_hidden_layers": 1}}),
    "gemma4": (["gemma4_text"], IMAGES_OF_GEMMA4 | {"vision_config": VISION}),
    "gemma4_unified": (["gemma4_unified_text"], IMAGES_OF_GEMMA4),
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
    "llama4": (["llama4_text"], {"vision_config": VISION, "pad_token_id": 0}),
    "llava": (["llama", "phi3", "gpt_neox"], SIGLIP),
    "llava_next": (["mistral"], SIGLIP),
    "llava_next_video": (["llama"], SIGLIP),
    "llava_onevision": (["qwen2"], SIGLIP),
    "mistral3": (["mistral"], {}),
    "moss_transcribe_diarize": (["qwen3"], {}),
    "musicflamingo": (["qwen2"], {}),
    "ovis2": (["qwen2"], {}),
    "perception_lm": (["llama"], SIGLIP),
    "qianfan_ocr": (["qwen3"], {}),
    "qwen2_5_vl": (["qwen2"], {"vision_config": QWEN}),
    "qwen2_audio": (["qwen2"], {}),
    "qwen2_vl": (["qwen2"], {"vision_config": QWEN}),
    "qwen3_asr": (["qwen3"], {}),
    "qwen3_vl": (["qwen3"], {"vision_config": QWEN}),
    "smolvlm": (["llama"], {"vision_config": VISION}),
    "vibevoice_asr": (["qwen2"], {}),
    "video_llama_3": (["qwen2"], {}),
    "video_llava": (["llama"], {}),
    "vipllava": (["llama"], {"vision_config": VISION}),
    "voxtral": (["llama"], {}),
}
NEWER = transformers.__version__ > "5.0.0"
OWN_NAMES = {"architectures", "dtype", "model_type", "transformers_version", "_name_or_path"}


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
        if home == "llama4" and transformers.__version__ >= "5.24":
            pytest.skip("it asks its language model for what that does not return")
        if home in ("gemma3n", "qwen2_vl", "qwen2_5_vl", "qwen3_vl") and decoders.RELEASE < (5, 23):
            pytest.skip("other code in older releases of transformers, and configs that are told otherwise")
        given = copy.deepcopy(CASES[home][1])
        make = tiny if family in FAMILIES else decoders.build
        alone = make(family, dtype, **PLAIN.get(family, {}) | settings)
        if home in ("aya_vision", "fast_vlm", "perception_lm", "llava", "gemma3"):
            given["vision_config"] = transformers.SiglipVisionConfig(**VISION)
            given["vision_config"].model_args = {"embed_dim": 16}  # as timm's have it
        config = class_of(home).config_class(text_config=copy.deepcopy(alone.config), **given)
        if home == "gemma3n":  # which wants timm
            vars(config)["vision_config"] = transformers.SiglipVisionConfig(**VISION)
            vars(config.vision_config).update(vocab_size=128, vocab_offset=262_144, rms_norm_eps=1e-6)
        its, own = config.get_text_config().to_dict(), alone.config.to_dict()
        changed = {name for name in own if its.get(name) != own[name]} - OWN_NAMES
        assert not changed, f"the wrapper's text is not read as by the language model alone: {changed}"
        for name in config.sub_configs:
            for depth in ("num_hidden_layers", "encoder_layers", "depth", "num_layers"):
                if "text" not in name and isinstance(getattr(getattr(config, name), depth, None), int):
                    setattr(getattr(config, name), depth, 1)
        with torch.device("meta"):
            model = class_of(home)(config)
        model = model.to(dtype).to_empty(device="cpu")
        give_language_model(model, alone)
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
    with torch.no_grad():
        own = model(input_ids=ids).logits
    assert gap(own, alone(ids).logits.detach()) <= 1e-14
    for rule in ("attnlrp", "cp"):
        truth = attribute(alone, ids, 3, 5, position=[4, 22], rule=rule)
        for memory in (None, least(model, rule=rule)):
            tiers = lrp_fast.plan(model, 23, rule=rule, memory=memory).tiers
            assert ("graph" in tiers) == (memory is None)
            found = attribute(model, ids, 3, 5, position=[4, 22], rule=rule, memory=memory)
            assert gap(found.layers, truth.layers) <= 1e-12
    if home == "gemma3n":  # of input embeddings alone it reads less
        return
    logits, direct = relevance(model, ids, "attnlrp")
    assert gap(logits, own) <= 1e-5  # float64 norms
    assert gap(direct, attribute(model, ids, 3, 5).relevance) <= 1e-12


def test_edges_are_those_of_the_language_model_alone(wrapped, ids):
    model, alone = wrapped("llava", "llama")
    spec = GraphSpec(topk=23)
    truth = attribute(alone, ids, 3, 5, graph=spec).graph
    for memory in (None, least(model, graph=spec)):
        found = attribute(model, ids, 3, 5, graph=spec, memory=memory).graph
        assert all(gap(found.dense(layer), truth.dense(layer)) <= 1e-12 for layer in range(3))
    rows = lrp_fast.between(model, ids, 0, 2, [22], target=3, contrast=5)
    assert gap(rows, lrp_fast.between(alone, ids, 0, 2, [22], target=3, contrast=5)) <= 1e-12


IMAGES = {"pixel_values": torch.zeros(1, 3, 28, 28, dtype=torch.float64)}
GIVEN = {
    "llava": ("llama", IMAGES, "'vision_tower' of LlavaModel"),
    "idefics3": ("llama", {"pixel_values": IMAGES["pixel_values"][None]}, "'vision_model' of Idefics3Model"),
    "voxtral": ("llama", {"input_features": torch.zeros(1, 128, 3000, dtype=torch.float64)}, "'audio_tower' of Vox"),
}


@pytest.mark.parametrize("home", GIVEN)
def test_images_and_sounds_are_refused(home, wrapped, ids):
    family, given, who = GIVEN[home]
    model, _ = wrapped(home, family)
    with pytest.raises(ValueError, match=f"^{who}.* is no part that reads text, .*: give text alone$"), patched(model):
        model(input_ids=ids, **given)
    assert attribute(model, ids).layers.isfinite().all()


def test_every_part_at_rest_is_guarded_and_comes_back(wrapped, ids):
    model, _ = wrapped("llava", "llama")
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    before = [(path, sorted(part.__dict__)) for path, part in model.named_modules()]
    assert dict(at_rest(model)) == {"model.vision_tower": tower, "model.multi_modal_projector": projector}
    with patched(model):
        for part in (model.model.vision_tower, model.model.multi_modal_projector):
            with pytest.raises(ValueError, match="give text alone"):
                part(ids)
            with pytest.raises(ValueError, match="give text alone"):
                part.forward(ids)
        assert model.model.vision_tower.dtype == torch.float64
        copy.deepcopy(model.model.vision_tower)
        with pytest.raises(ValueError, match="give text alone"):
            model.get_image_features(pixel_values=IMAGES["pixel_values"])
    assert model.model.vision_tower is tower and model.model.multi_modal_projector is projector
    assert [(path, sorted(part.__dict__)) for path, part in model.named_modules()] == before
    inside = set(tower.modules()) | set(projector.modules())
    assert inside.isdisjoint(part for _, part, _ in handled(model))


@pytest.mark.skipif(not NEWER, reason="refused there as any mask")
def test_token_types_are_honoured_or_refused(wrapped, ids):
    """A processor gives them with every text."""
    model, _ = wrapped("gemma3", "gemma3")
    types = torch.zeros_like(ids)
    own = model(input_ids=ids, token_type_ids=types).logits.detach()
    with patched(model):
        assert gap(model(input_ids=ids, token_type_ids=types).logits.detach(), own) <= 1e-5
    types[0, 5:9] = 1
    assert gap(model(input_ids=ids, token_type_ids=types).logits.detach(), own) > 1e-3
    who = f"token_type_ids mark tokens that {type(model).__name__} reads in both directions"
    with pytest.raises(ValueError, match=who), patched(model):
        model(input_ids=ids, token_type_ids=types)
    with pytest.raises(ValueError, match="^token_type_ids came with the prompt, which Gemma3F.*: leave them out"):
        attribute(model, {"input_ids": ids, "token_type_ids": types})
    for text in (torch.zeros_like(ids), [[0] * 23]):
        found = attribute(model, {"input_ids": ids, "token_type_ids": text}, 3).layers
        assert torch.equal(found, attribute(model, ids, 3).layers)


def test_a_placeholder_of_an_image_is_a_token_like_any_other(wrapped, ids):
    model, alone = wrapped("llava", "llama")
    model.config.image_token_id = int(ids[0, 7])
    assert gap(attribute(model, ids, 3, 5).layers, attribute(alone, ids, 3, 5).layers) <= 1e-12


def test_limits_are_those_of_the_text(wrapped):
    model, _ = wrapped("llava", "llama")
    with pytest.raises(ValueError, match="input_ids holds token 97, outside the vocabulary, 0 to 96"):
        attribute(model, [1, 97])
    note = attribute(model, [1] * 129).explained.note
    assert "The prompt has 129 tokens, more than the 128 positions that the config says" in note
    with pytest.raises(ValueError, match="target 97"):
        attribute(model, [1, 2], target=97)


def test_sixteen_bits_plan_by_the_language_model(wrapped, ids):
    """Whatever dtype its vision tower is kept in."""
    model, alone = wrapped("llava", "llama", torch.bfloat16)
    model.model.vision_tower.float()
    truth = attribute(alone, ids, 3, 5)
    assert lrp_fast.plan(model, 23).tiers == lrp_fast.plan(alone, 23).tiers
    assert torch.equal(attribute(model, ids, 3, 5).layers, truth.layers)


def test_padded_batches(wrapped, ids):
    model, alone = wrapped("llava", "llama")
    batch = torch.cat([ids, ids.flip(1)])
    mask = torch.ones_like(batch)
    mask[0, :6] = 0
    found, truth = (lrp_fast.attribute_batch(one, batch, mask, target=3) for one in (model, alone))
    assert all(gap(a.layers, b.layers) <= 1e-12 for a, b in zip(found, truth, strict=True))
    logits = []
    for one in (model, alone):
        with patched(one):
            logits.append(one(input_ids=batch, attention_mask=mask).logits)
    assert torch.equal(*logits)
    model.set_attn_implementation("lrp_fast")
    assert gap(model(input_ids=batch, attention_mask=mask).logits[:, -1], logits[0][:, -1]) <= 1e-5


def test_a_language_model_that_is_not_covered_is_named(wrapped):
    model, _ = wrapped("llava", "llama")
    model.model.language_model = transformers.OPTModel(
        transformers.OPTConfig(hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2, vocab_size=97)
    ).eval()
    with pytest.raises(UnsupportedModuleError, match="module 'model.language_model', a OPTModel"):
        attribute(model, [1, 2])


def test_adapters_on_a_wrapper(wrapped, ids):
    """peft finds the names in the vision tower too, whose adapters are at rest with it."""
    peft = pytest.importorskip("peft")
    model, alone = wrapped("llava", "llama")
    base = attribute(alone, ids, 3, 5).layers
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    assert any("vision_tower" in path and "lora_A" in path for path, _ in model.named_modules())
    found = attribute(model, ids, 3, 5).layers
    merged = copy.deepcopy(model).merge_and_unload()
    assert gap(found, attribute(merged.eval(), ids, 3, 5).layers) <= 1e-12 and gap(found, base) > 0.1


def test_coverage_tells_of_the_parts_at_rest(wrapped):
    model, _ = wrapped("llava", "llama")
    found = {one.name: one for one in coverage(model)}
    tower = found[type(model.model.vision_tower).__name__]
    assert (tower.rule, tower.path) == ("not run by text alone; refused if it is", "model.vision_tower")
    assert all(one.rule for one in found.values())
    assert found["Linear"].path == "model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("home", "family"), [("llava", "llama"), ("idefics3", "llama"), ("qwen2_audio", "qwen2"), ("gemma3", "gemma3")]
)
def test_the_doctor_examines_the_wrapper(home, family, wrapped, monkeypatch):
    model, _ = wrapped(home, family, torch.float32)
    found, checks = doctor.examine(model.config)
    assert all(one.rule for one in found) and "not run by text alone; refused if it is" in {one.rule for one in found}
    assert len(checks) >= 7 and all(check.passed for check in checks), checks
    small = doctor._small(model.config)
    assert type(small) is type(model) and {one.device.type for one in small.parameters()} == {"cpu"}
    monkeypatch.setattr(lrp_fast.ops, "rms_norm", lambda x, *rest, **named: x * 2)
    assert not all(check.passed for check in doctor.checks(model.config))


def test_the_command_line_takes_a_wrapper(wrapped, tmp_path, capsys):
    model, _ = wrapped("llava", "llama", torch.float32)
    with torch.no_grad():
        for _, part in at_rest(model):
            for parameter in part.parameters():
                parameter.zero_()
    model.save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, "w0"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--tokens", "10", "--device", "cpu"]) == 0
    assert main(["doctor", str(tmp_path)]) == 0
    assert "not run by text alone" in capsys.readouterr().out
    given = ["--prompt", "w3 w4 w5", "--target", "w7", "--out", str(tmp_path / "case")]
    assert main(["attribute", str(tmp_path), *given]) == 0
    found = lrp_fast.load(tmp_path / "case.safetensors").layers
    assert gap(found, attribute(model, [3, 4, 5], 7, ("top", 1)).layers) <= 1e-4


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_a_wrapper_that_reads_both_ways_is_refused(family, tiny, ids):
    """Made from its own config, which makes the language model's read both ways."""
    text = copy.deepcopy(tiny(family).config)
    if not hasattr(text, "use_bidirectional_attention"):
        pytest.skip("a release of transformers that says so nowhere")
    config = transformers.PaliGemmaConfig(text_config=text, vision_config=transformers.SiglipVisionConfig(**VISION))
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    why = "module 'model.language_model.layers.0.self_attn', a .*, reads tokens in both directions .use_bidirectional_"
    for call in (lambda: attribute(model, ids), lambda: lrp_fast.plan(model, 23), patched(model).__enter__):
        with pytest.raises(UnsupportedModuleError, match=f"^{why}.* read causally, and encoders$"):
            call()


def test_a_cap_on_scores_that_sdpa_leaves_out_is_mended_as_the_refusal_says(ids):
    """On a wrapper that was made from its config, whose parts share it."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": None}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 97}
    text = transformers.Gemma2Config(**sizes, **heads)
    config = transformers.LlavaConfig(text_config=text, vision_config=transformers.SiglipVisionConfig(**VISION))
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    truth = attribute(model, ids, 3, 5).layers
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation_internal = "sdpa"  # what older releases do by themselves
    with pytest.raises(ValueError, match=r"leaves that out: call model.set_attn_implementation\("):
        attribute(model, ids)
    model.set_attn_implementation("eager")
    assert torch.equal(attribute(model, ids, 3, 5).layers, truth)


def test_what_is_at_rest_is_at_rest_in_one_thread_alone(wrapped, ids):
    """What another thread has the model do with an image while a pass is on."""
    model, _ = wrapped("llava", "llama")
    part, seen = model.model.multi_modal_projector, []
    features = torch.randn(1, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        truth = part(features)

    def look():
        with torch.no_grad():
            seen.append((model.model.multi_modal_projector(features), model.model.multi_modal_projector.linear_1))

    def progress(*_):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    attribute(model, ids, progress=progress)
    assert len(seen) == 7 and all(torch.equal(found, truth) and linear is part.linear_1 for found, linear in seen)


@decoders.RECENT
def test_tokens_of_images_are_refused(wrapped, ids):
    """Gemma 3n looks every token up in tables of images' and sounds' own, too."""
    model, _ = wrapped("gemma3n", "gemma3n_text")
    ids[0, 3] = 262_144
    with pytest.raises(ValueError, match="input_ids from 262144 on are tokens of images and sounds"), patched(model):
        model.model.forward(input_ids=ids)
    with pytest.raises(ValueError, match="'embed_vision' of Gemma3nModel is no part that reads text"), patched(model):
        model.model.embed_vision(inputs_embeds=torch.zeros(1, 2, 16))
