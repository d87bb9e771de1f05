"""`lrp-fast plan` and `lrp-fast doctor` on what a config says."""

import json
from pathlib import Path

import pytest
import transformers

from lrp_fast.cli import main


@pytest.mark.parametrize("command", [["plan", "--tokens", "10"], ["doctor"]])
def test_a_quantised_config_is_read_as_one_in_floats_and_that_is_said(command, directory, tmp_path, capsys):
    config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
    for quantised in (False, True):
        more = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}} if quantised else {}
        (tmp_path / "config.json").write_text(json.dumps(config | more), "utf-8")
        assert main([command[0], str(tmp_path), *command[1:]]) == 0
        assert ("is quantised: what follows is about the same model in floats" in capsys.readouterr().err) == quantised


@pytest.mark.parametrize(
    ("given", "method"),
    [
        *(({"quant_method": name}, name) for name in ("gptq", "awq", "fp8", "mxfp4", "compressed-tensors")),
        ({"bits": 4}, "a method without a name"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
        ({"load_in_4bit": True}, None),
        ({"quant_method": "torchao"}, None),
        ({"quant_method": "fp8", "dequantize": True}, None),
    ],
)
def test_the_doctor_knows_which_quantised_checkpoints_can_be_read(given, method, directory, tmp_path, capsys):
    config = json.loads((Path(directory) / "config.json").read_text("utf-8")) | {"quantization_config": given}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    status = main(["doctor", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == (method is not None) and told["healthy"] == (method is None)
    assert all(one["rule"] for one in told["modules"]) and len(told["checks"]) > 4
    assert main(["doctor", str(tmp_path)]) == status
    out = capsys.readouterr().out
    if method is None:
        assert told["weights"] is None and "NOT COVERED" not in out
    else:
        assert told["weights"].startswith(f"the checkpoint is quantised by {method}, which lrp_fast cannot read: load")
        assert f"weights NOT COVERED: {told['weights']}" in out


NONE = "transformers has no causal language model for '{}', a {}: nothing to explain"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *((transformers.T5Config(), NONE), (transformers.CLIPConfig(), NONE), (transformers.ViTConfig(), NONE)),
        (transformers.SiglipConfig(), NONE),
    ],
    ids=lambda one: getattr(one, "model_type", ""),
)
def test_what_has_no_causal_form_is_refused_in_one_sentence(config, said, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    for command in (["plan", "--tokens", "10"], ["doctor"], ["attribute", "--prompt", "a"], ["graph", "--prompt", "a"]):
        capsys.readouterr()
        assert main([command[0], str(tmp_path), *command[1:]]) == 2
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if not line.startswith("loading ")]
        assert out == "" and line == "lrp-fast: " + said.format(tmp_path, type(config).__name__)


@pytest.mark.parametrize("command", [["plan", "--tokens", "10", "--device", "cpu"], ["doctor"]])
@pytest.mark.parametrize("name", ["LlamaForQuestionAnswering", "LlamaForCausalLM"])
def test_another_head_is_read_as_its_language_model_and_that_is_said(name, command, directory, tmp_path, capsys):
    config = json.loads((Path(directory) / "config.json").read_text("utf-8")) | {"architectures": [name]}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    capsys.readouterr()
    assert main([command[0], str(tmp_path), *command[1:]]) == 0
    told = f"{tmp_path} is a {name}: what follows is about LlamaForCausalLM, the language model of that architecture\n"
    assert capsys.readouterr().err == ("" if name == "LlamaForCausalLM" else told)


@pytest.mark.parametrize("command", [["plan", "--tokens", "10", "--device", "cpu"], ["doctor"]])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hidden_act": "foo"}, "transformers says KeyError, 'foo'"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "transformers says KeyError, 'foo'"),
        ({"pad_token_id": 99}, "transformers says AssertionError, Padding_idx must be within num_embeddings"),
        ({"num_key_value_heads": 0}, "transformers says ZeroDivisionError, integer division or modulo by zero"),
        (
            {"num_key_value_heads": 3, "num_attention_heads": 2},
            "its num_attention_heads=2 is no multiple of its num_key_value_heads=3",
        ),
        ({"intermediate_size": -1}, "transformers says RuntimeError, Trying to create tensor with negative dimension"),
        (
            {"intermediate_size": 0},
            "it leaves weights without numbers, model.layers.0.mlp.gate_proj.weight (0, 64) first",
        ),
        ({"vocab_size": 0, "pad_token_id": None}, "it leaves weights without numbers, model.embed_tokens.weight (0, "),
        ({"num_hidden_layers": 0}, "it says num_hidden_layers=0, and a model runs 1 or more"),
        ({"num_hidden_layers": -2}, "it says num_hidden_layers=-2, and a model runs 1 or more"),
    ],
)
def test_a_config_that_no_model_can_be_made_of(given, said, command, directory, tmp_path, capsys):
    config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | given), "utf-8")
    capsys.readouterr()
    assert main([command[0], str(tmp_path), *command[1:]]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    start = f"lrp-fast: no model can be made of the config.json of {str(tmp_path)!r}: {said}"
    assert out == "" and line.startswith(start) and line.endswith("; correct it")
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert main([command[0], str(tmp_path), *command[1:]]) == 0
