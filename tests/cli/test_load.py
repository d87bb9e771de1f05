"""What is loaded is what the folder holds: otherwise one sentence says why not, and its mend works."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lrp_fast.cli.load import load

PROMPT = ("--prompt", "the capital of australia is")
KIND = "would explain a head that nobody trained"


@pytest.fixture
def changed(directory, tmp_path):
    """``changed(config, weights, without=())``: a copy of the tiny Llama with more in its config (None: less), and with
    other weights (None: without)."""

    def change(config=(), weights=(), without=""):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(directory, folder)
        told = json.loads((folder / "config.json").read_text("utf-8")) | dict(config)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}), "utf-8")
        state = load_file(folder / "model.safetensors") | dict(weights)
        state = {k: v.contiguous() for k, v in state.items() if v is not None and not (without and without in k)}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return change


def with_tokenizer(folder, directory):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{directory}/{name}", folder)


def said(err):
    """What stderr says apart from the usual."""
    return [line for line in err.splitlines() if not line.startswith(("loading ", "wrote "))]


def refused(run, folder):
    status, out, err = run(*PROMPT, model=folder)
    assert status == 2 and out == "" and "Traceback" not in err
    (line,) = said(err)
    return line


@pytest.mark.parametrize("tied", [False, True])
def test_every_family_loads_without_a_word(family, tied, tiny, directory, tmp_path, capfd):
    model = tiny(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    with_tokenizer(tmp_path, directory)
    capfd.readouterr()
    loaded, _ = load(argparse.Namespace(model=str(tmp_path), device="cpu", dtype=None))
    assert capfd.readouterr().err == "" and type(loaded) is type(model)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("architectures", ["kept", None])
def test_shards_and_pickles_load_without_a_word(architectures, changed, run, tmp_path):
    whole = changed({} if architectures else {"architectures": None})
    status, out, err = run(*PROMPT, model=whole)
    assert (status, said(err)) == (0, [])
    pickled, sharded = tmp_path / "pickled", tmp_path / "sharded"
    shutil.copytree(whole, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    shutil.copytree(whole, sharded)
    (sharded / "model.safetensors").unlink()
    transformers.AutoModelForCausalLM.from_pretrained(whole).save_pretrained(sharded, max_shard_size="50KB")
    assert (sharded / "model.safetensors.index.json").exists()
    for folder in (pickled, sharded):
        status, again, err = run(*PROMPT, model=str(folder))
        assert (status, said(err)) == (0, []) and again.splitlines()[:2] == out.splitlines()[:2]


def test_a_checkpoint_with_missing_weights_is_refused(changed, run, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    broken = changed(weights={name: None})
    assert f"lack 1 that the model has, {name} first: explaining random" in refused(run, broken)
    broken = changed(weights={name: None, "model.up.weight": torch.ones(96, 64)})
    line = refused(run, broken)
    assert f"lack 1 that the model has, {name} first, and hold 1 that it has no place for, model.up.weight" in line
    assert line.endswith("complete the checkpoint") and run(*PROMPT, model=changed())[0] == 0
    (tmp_path / "changed" / "model.safetensors").write_bytes(b"x" * 100)
    assert "cannot load" in refused(run, broken)
    (tmp_path / "changed" / "model.safetensors").rename(tmp_path / "changed" / "pytorch_model.bin")
    assert "cannot load" in refused(run, broken)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_with_a_word_before_them_are_seen_through(prefix, tied, changed, run):
    folder = changed({"tie_word_embeddings": tied}, {"lm_head.weight": None} if tied else {})
    state = load_file(f"{folder}/model.safetensors")
    save_file({prefix + key: weight for key, weight in state.items()}, f"{folder}/model.safetensors", {"format": "pt"})
    assert refused(run, folder).endswith(f"take '{prefix}' off the names of its weights")
    save_file(state, f"{folder}/model.safetensors", {"format": "pt"})
    assert run(*PROMPT, model=folder)[0] == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize("kept", ["whole", "sharded"])
def test_weights_in_whole_numbers_are_refused(dtype, kept, changed, run):
    name = "model.layers.1.self_attn.q_proj.weight"
    weight = load_file(f"{changed()}/model.safetensors")[name]
    folder = changed(weights={name: (weight * 50).to(dtype)})
    if kept == "sharded":
        file, index = f"{folder}/model-00001-of-00001.safetensors", f"{folder}/model.safetensors.index.json"
        shutil.move(f"{folder}/model.safetensors", file)
        names = dict.fromkeys(load_file(file), "model-00001-of-00001.safetensors")
        Path(index).write_text(json.dumps({"metadata": {}, "weight_map": names}), "utf-8")
    line = refused(run, folder)
    assert f"{folder!r} holds 1 weight in whole numbers, {name} first, and no quantization_config in its config" in line
    assert line.endswith("put that back, or name the model in floats that it was made from")
    for floats in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        assert run(*PROMPT, model=changed(weights={name: weight.to(floats)}))[0] == 0


def test_whole_numbers_beside_the_language_model_are_none_of_its_weights(changed, run):
    names = ("vision_tower.position.weight", LAYER + "self_attn.rotary_emb.inv_freq", "model.position_ids")
    assert run(*PROMPT, model=changed(weights={name: torch.ones(8).long() for name in names}))[0] == 0


def test_adapters_and_scales_saved_with_the_weights_are_seen(changed, run):
    name = "model.layers.1.mlp.up_proj."
    wrapped = {name + "base_layer.weight": torch.ones(96, 64), name + "lora_A.default.weight": torch.ones(4, 64)}
    line = refused(run, changed(weights={name + "weight": None} | wrapped))
    assert "lack 1 that" in line and "merge its adapters" in line
    packed = {name + "weight": torch.ones(3072, 1), name + "weight.absmax": torch.ones(96)}
    line = refused(run, changed(weights=packed))
    assert "(3072, 1) in the checkpoint, (96, 64) by the config; put the quantization_config" in line


def test_weights_of_another_shape_are_named(changed, run):
    line = refused(run, changed({"vocab_size": 13}))
    assert "2 of the weights in" in line and "lm_head.weight first: (11, 64) in the checkpoint, (13, 64) by the" in line
    assert run(*PROMPT, model=changed({"vocab_size": 11}))[0] == 0


@pytest.mark.parametrize("head", ["QuestionAnswering"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_another_head_is_refused(head, tied, tiny, directory, run, tmp_path):
    config = tiny("llama", vocab_size=11, tie_word_embeddings=tied).config
    getattr(transformers, f"LlamaFor{head}")(config).save_pretrained(tmp_path)
    with_tokenizer(tmp_path, directory)
    line = refused(run, str(tmp_path))
    assert f"is a LlamaFor{head} by its config.json, no causal language model" in line and KIND in line


def test_without_a_word_in_the_config_the_weights_tell_another_head(changed, run):
    """With tied embeddings no weight is missing."""
    head = {"lm_head.weight": None, "score.weight": torch.ones(1, 64)}
    for architectures in (None, [], ["LlamaModel"], ["LlamaOfMine"]):
        told = {"architectures": architectures, "tie_word_embeddings": True}
        line = refused(run, changed(told, head))
        assert "has a head of its own (score.weight), and none of a language model" in line and KIND in line
        line = refused(run, changed(told | {"tie_word_embeddings": False}, head))
        assert "has no head (lm_head.weight)" in line and KIND in line


ANOTHER = ["LlamaForRewardModel", "RewardForCausalLM", "LlamaForScoring", "MySequenceClassification", "CriticModel"]


@pytest.mark.parametrize("name", [*ANOTHER, "LlamaForCausalLMValue", "LlamaValueHeadModel", "LlamaForReranking"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_name_of_another_head_is_refused_whatever_the_weights(name, tied, changed, run):
    told = {"architectures": [name], "tie_word_embeddings": tied}
    for weights in ({}, {"lm_head.weight": None}, {"value_head.weight": torch.ones(1, 64)}):
        line = refused(run, changed(told, weights))
        assert f"is a {name} by its config.json, no causal language model" in line and KIND in line
    assert run(*PROMPT, model=changed())[0] == 0


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaForCausalLMWithValueHead", "MistralForCausalLM"])
@pytest.mark.parametrize("head", ["score.weight", "v_head.summary.weight", "value_head.weight"])
def test_a_head_beside_a_causal_language_model_s_is_named(name, head, changed, run):
    config = {"architectures": [name], "tie_word_embeddings": True}
    folder = changed(config, {"lm_head.weight": None, head: torch.ones(1, 64)})
    status, _, err = run(*PROMPT, model=folder)
    assert status == 0 and f"{folder} holds 1 weight beside the language model, {head} first: left out" in said(err)


def test_a_decoder_alone_has_no_head_unless_it_is_tied(changed, run):
    alone = {"lm_head.weight": None}
    line = refused(run, changed({"architectures": ["LlamaModel"]}, alone))
    assert "has no head (lm_head.weight)" in line and KIND in line and "of the whole LlamaForCausalLM" in line
    folder = changed({"architectures": ["LlamaModel"], "tie_word_embeddings": True}, alone)
    status, _, err = run(*PROMPT, model=folder)
    assert status == 0
    told = f"{folder} is a LlamaModel by its config: explained as a LlamaForCausalLM, whose head is the embeddings"
    assert said(err) == [told]


LAYER = "model.layers.1."
INSIDE = {
    "attention_bias": ({"attention_bias": False}, {}, "attention_bias=false"),
    "mlp_bias": ({"mlp_bias": False}, {}, "mlp_bias=false"),
    "a layer more": ({"num_hidden_layers": 2}, {}, "num_hidden_layers=2: correct it"),
    "q norm": ({}, {LAYER + "self_attn.q_norm.weight": torch.ones(16)}, "model_type 'llama': correct what"),
    "adapters": ({}, {LAYER + "self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}, "merge its adapters"),
    "adapters elsewhere": ({}, {"base_model.model.lora_B.weight": torch.ones(4, 64)}, "merge its adapters"),
    "scales": ({}, {LAYER + "mlp.up_proj.weight_scale": torch.ones(96)}, "put the quantization_config"),
    "scales_inv": ({}, {LAYER + "mlp.up_proj.weight_scale_inv": torch.ones(96)}, "put the quantization_config"),
    "norm of embeddings": ({}, {"model.embed_norm.weight": torch.ones(64)}, "model_type 'llama': correct what these"),
    "head's bias": ({}, {"lm_head.bias": torch.ones(11)}, "model_type 'llama': correct what these"),
    "final norm's bias": ({}, {"model.norm.bias": torch.ones(64)}, "model_type 'llama': correct what these"),
}


@pytest.mark.parametrize("case", INSIDE)
def test_weights_that_the_decoder_has_no_place_for_are_refused(case, changed, run):
    config, weights, mend = INSIDE[case]
    line = refused(run, changed(config, weights))
    assert "that its config.json leaves no place for, " in line and mend in line
    assert "what would be explained is not this checkpoint" in line
    assert run(*PROMPT, model=changed())[0] == 0  # the config corrected, the weights taken away


def test_it_is_counted_and_the_first_is_named(changed, run):
    line = refused(run, changed({"attention_bias": False}))
    assert "holds 12 weights that its config.json leaves no place for, model.layers.0.self_attn.k_proj.bias fir" in line


def test_a_config_of_another_family_is_seen(tiny, directory, run, tmp_path):
    tiny("qwen3", vocab_size=11).save_pretrained(tmp_path)
    with_tokenizer(tmp_path, directory)
    told = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(told | {"model_type": "llama", "architectures": None}), "utf-8")
    line = refused(run, str(tmp_path))
    assert "k_norm.weight first" in line and "says model_type 'llama': correct what these weights contradict" in line
    (tmp_path / "config.json").write_text(json.dumps(told), "utf-8")
    load(argparse.Namespace(model=str(tmp_path), device="cpu", dtype=None))


def test_names_without_the_decoder_s_prefix_are_understood(tiny, directory, run, tmp_path):
    """As a decoder that was saved alone has them."""
    tiny("llama", vocab_size=11, tie_word_embeddings=True).base_model.save_pretrained(tmp_path)
    with_tokenizer(tmp_path, directory)
    assert run(*PROMPT, model=str(tmp_path))[0] == 0
    state = load_file(tmp_path / "model.safetensors")
    for name in ("layers.0.self_attn.q_norm.weight", "embed_norm.weight"):
        save_file(state | {name: torch.ones(16)}, tmp_path / "model.safetensors", {"format": "pt"})
        assert f"leaves no place for, {name} first" in refused(run, str(tmp_path))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({}, "v_head.summary.weight"),
        ({"tie_word_embeddings": True}, "v_head.summary.weight"),
        ({}, "score.weight"),
        ({}, "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"),
        ({}, "model.visual.blocks.0.attn.qkv.bias"),
        ({}, "multi_modal_projector.linear_1.weight"),
        ({}, "model.mtp_layers.0.input_layernorm.weight"),
        ({}, "mtp.layers.0.input_layernorm.weight"),
        ({"num_nextn_predict_layers": 1}, "model.layers.3.eh_proj.weight"),
    ],
)
def test_weights_beside_the_language_model_are_named(config, key, changed, run):
    _, plain, _ = run(*PROMPT, model=changed(config))
    folder = changed(config, {key: torch.ones(3)})
    status, out, err = run(*PROMPT, model=folder)
    assert status == 0 and out == plain
    assert said(err) == [f"{folder} holds 1 weight beside the language model, {key} first: left out"]


def test_what_models_compute_for_themselves_goes_without_a_word(changed, run, tiny, tmp_path):
    folder = changed(weights={LAYER + "self_attn.rotary_emb.inv_freq": torch.ones(8)})
    status, _, err = run(*PROMPT, model=folder)
    assert (status, said(err)) == (0, [])
    model = tiny("gpt2", vocab_size=11)
    model.base_model.save_pretrained(tmp_path / "gpt2")
    told = json.loads((tmp_path / "gpt2/config.json").read_text("utf-8")) | {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "gpt2/config.json").write_text(json.dumps(told | {"tie_word_embeddings": True}), "utf-8")
    state = load_file(tmp_path / "gpt2/model.safetensors")
    state |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state, tmp_path / "gpt2/model.safetensors", {"format": "pt"})
    with_tokenizer(tmp_path / "gpt2", folder)
    status, _, err = run(*PROMPT, model=str(tmp_path / "gpt2"))
    assert (status, said(err)) == (0, [])


def test_a_class_of_the_same_weights_is_named(changed, run):
    folder = changed({"architectures": ["MistralForCausalLM"]})
    status, _, err = run(*PROMPT, model=folder)
    assert status == 0
    assert said(err) == [f"{folder} is a MistralForCausalLM by its config: explained as a LlamaForCausalLM"]


def test_the_graph_is_refused_likewise(changed, run):
    status, out, err = run(*PROMPT, model=changed({"attention_bias": False}), command="graph")
    assert status == 2 and out == "" and "leaves no place for" in err


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:1", "nonsense", "cpu,cuda", ""])
def test_a_device_that_is_neither_a_cpu_nor_cuda(device, directory, run):
    status, out, err = run(*PROMPT, f"--device={device}")
    (line,) = said(err)
    assert status == 2 and out == "" and line.startswith(f"lrp-fast: --device {device} cannot be used: ")
    assert line.endswith("; name cpu or a CUDA device, such as cuda or cuda:1") and len(line) < 350
    assert run(*PROMPT, "--device=cpu")[0] == 0
