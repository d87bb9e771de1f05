"""The doctor: it covers what the families cover, sees what they do not, and its checks can fail."""

import json

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import doctor
from lrp_fast.cli import main


def test_every_family_is_healthy(family, tiny):
    found, checks = doctor.examine(tiny(family).config)
    assert all(one.rule for one in found) and len(checks) == 4
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("name", ["Llama", "Phi3", "Gemma3Text", "GPT2", "Qwen3Moe"])
def test_a_whole_config_is_read_without_weights_and_left_alone(name):
    config = getattr(transformers, f"{name}Config")()
    before = config.to_json_string()
    found, checks = doctor.examine(config)
    assert sum(one.count for one in found) > 50 and all(check.passed for check in checks)
    assert config.to_json_string() == before


def test_a_config_without_a_causal_language_model_is_refused():
    with pytest.raises(ValueError, match="no causal language model for a T5Config: nothing to explain$"):
        doctor.examine(transformers.T5Config())


def test_what_no_rule_covers_is_named_and_nothing_is_checked():
    found, checks = doctor.examine(transformers.MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=50))
    (mixer,) = [one for one in found if one.name == "MambaMixer"]
    assert mixer.rule is None and mixer.count == 2 and mixer.path == "backbone.layers.0.mixer" and checks == []


@pytest.mark.parametrize(
    ("operation", "failed"),
    [
        ("rms_norm", "logits are the model's own"),
        ("crossing", "edges in closed form are those of a backward pass a row"),
    ],
)
def test_what_is_broken_is_found(operation, failed, tiny, monkeypatch):
    own = getattr(lrp_fast.ops, operation)
    monkeypatch.setattr(lrp_fast.ops, operation, lambda *args, **named: own(*args, **named) * 1.01)
    assert failed in [check.what for check in doctor.checks(tiny("llama").config) if not check.passed]


def test_a_number_that_is_none_fails():
    assert not doctor.Check("", float("nan"), 1.0).passed


def test_the_command_line(tiny, tmp_path, capsys):
    tiny("qwen2").config.save_pretrained(tmp_path / "good")
    assert main(["doctor", str(tmp_path / "good")]) == 0
    out = capsys.readouterr().out
    assert "Qwen2Attention" in out and "  ok    edges in closed form" in out and "FAIL" not in out
    assert main(["doctor", str(tmp_path / "good"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] and {"name", "count", "path", "rule", "kernel"} == set(told["modules"][0])

    transformers.MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=50).save_pretrained(tmp_path / "bad")
    assert main(["doctor", str(tmp_path / "bad")]) == 1
    assert "NOT COVERED: lrp_fast.hf.register teaches it a rule (backbone.layers.0.mixer)" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert torch.get_default_dtype() == torch.float32
