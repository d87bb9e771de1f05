"""The doctor: it covers what the families cover, sees what they do not, and its checks can fail."""

import json

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import doctor
from lrp_fast.cli import main
from tests import decoders


def test_every_family_is_healthy(family, tiny):
    found, checks = doctor.examine(tiny(family).config)
    assert all(one.rule for one in found) and len(checks) >= 7
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("name", ["Llama", "Phi3", "Gemma3Text", "Gemma3", "Llava", "GPT2", "Qwen3Moe"])
def test_a_whole_config_is_read_without_weights_and_left_alone(name):
    config = getattr(transformers, f"{name}Config")()
    before = config.to_json_string()
    found, checks = doctor.examine(config)
    assert sum(one.count for one in found) > 50 and all(check.passed for check in checks)
    assert config.to_json_string() == before


def test_a_config_without_a_causal_language_model_is_refused():
    with pytest.raises(ValueError, match="no causal language model for a T5Config: nothing to explain$"):
        doctor.examine(transformers.T5Config())


XLNET = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=32, vocab_size=50)


def test_what_no_rule_covers_is_named_and_nothing_is_checked():
    found, checks = doctor.examine(XLNET)
    (part,) = [one for one in found if one.name == "XLNetRelativeAttention"]
    assert part.rule is None and part.count == 2 and part.path == "transformer.layer.0.rel_attn" and checks == []


@pytest.mark.slow
@decoders.RECENT
def test_a_config_that_no_small_copy_can_be_made_of():
    found, checks = doctor.examine(transformers.MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=50))
    assert all(one.rule is not None for one in found)
    assert len(checks) == 1 and not checks[0].passed and "no small copy can be made" in checks[0].what


@decoders.RECENT
def test_a_config_whose_small_copy_does_not_run():
    """What it derives from other settings is no longer so where these are small."""
    found, checks = doctor.examine(decoders.build("zamba2").config)
    assert all(one.rule is not None for one in found)
    assert len(checks) == 1 and not checks[0].passed and "no small copy can be made" in checks[0].what


@pytest.mark.parametrize(
    ("config", "mend"),
    [
        (
            transformers.BloomConfig(pretraining_tp=2, slow_but_exact=True),
            "adds up parts of a product, and leaves out its bias (slow_but_exact with pretraining_tp above 1), which "
            "lrp_fast has no rule for: set slow_but_exact=False in its config",
        ),
    ],
    ids=["Bloom"],
)
def test_what_is_refused_for_a_reason_is_told_that_reason_and_everywhere(config, mend, tmp_path, capsys):
    found, checks = doctor.examine(config)
    refused = [one for one in found if one.rule is None]
    assert refused and {one.mend for one in refused} == {mend} and checks == []
    config.save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count(mend) == 1 and "register" not in out
    assert main(["plan", str(tmp_path), "--tokens", "10"]) == 2
    assert mend in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operation", "failed"),
    [
        ("rms_norm", "logits are the model's own"),
        ("layer_crossing", "edges in closed form are those of a backward pass a row"),
    ],
)
def test_what_is_broken_is_found(operation, failed, tiny, monkeypatch):
    own = getattr(lrp_fast.ops, operation)
    monkeypatch.setattr(lrp_fast.ops, operation, lambda *args, **named: own(*args, **named) * 1.01)
    assert failed in [check.what for check in doctor.checks(tiny("llama").config) if not check.passed]


OPERATIONS = {
    "llama": ["attentions", "gated MLPs", "linear maps", "norms"],
    "phi3": ["attentions", "gated MLPs", "linear maps", "norms"],
    "gpt2": ["activations", "attentions", "linear maps", "norms"],
    "qwen2_moe": ["attentions", "experts", "gated MLPs", "linear maps", "norms"],
    "gpt_oss": ["attentions", "experts", "linear maps", "norms"],
}


@pytest.mark.parametrize("family", OPERATIONS)
def test_all_kinds_of_operations_are_held_against_their_definitions(family, tiny):
    names = [check.what for check in doctor.checks(tiny(family).config)[4:]]
    assert sorted(names) == [f"{name} pass relevance as defined" for name in OPERATIONS[family]]


def told(rule):
    return lambda own: lambda *args, **named: own(*args, **named | {"rule": rule})


def plain_product(own):
    return lambda gate, up, kind, rule: torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize(
    ("family", "operation", "wrong", "failed"),
    [
        ("llama", "gated_mlp", plain_product, ["gated MLPs"]),
        ("llama", "gated_mlp", told("cp"), ["gated MLPs"]),
        ("phi3", "gated_mlp", plain_product, ["gated MLPs"]),
        ("llama", "rms_norm", told("gradient"), ["norms"]),
        ("olmo2", "rms_norm", told("gradient"), ["norms"]),
        ("gemma", "rms_norm", told("gradient"), ["norms"]),
        ("cohere", "rms_norm", told("gradient"), ["norms"]),
        ("gpt_neox", "layer_norm", told("gradient"), ["norms"]),
        ("gpt_neox", "activation", told("gradient"), ["activations"]),
        ("gemma2", "attention", told("cp"), ["attentions"]),
        ("gpt_oss", "attention", told("gradient"), ["attentions"]),
        ("mixtral", "product", lambda own: lambda a, b, rule: a * b, ["experts"]),
        ("gpt_oss", "product", lambda own: lambda a, b, rule: a * b, ["experts"]),
        ("gpt_oss", "identity", lambda own: lambda z, y, ratio: z * (y / z).detach() / 2, ["experts"]),
        (
            "gpt2",
            "linear",
            lambda own: lambda x, *args, **named: own(x / 2 + (x / 2).detach(), *args, **named),
            ["linear maps"],
        ),
    ],
)
def test_what_differs_from_a_definition_is_found(family, operation, wrong, failed, tiny, monkeypatch):
    """Whether or not the code agrees with itself: whatever else it does wrong, this operation is named."""
    monkeypatch.setattr(lrp_fast.ops, operation, wrong(getattr(lrp_fast.ops, operation)))
    checks = [check for check in doctor.checks(tiny(family).config) if check.what.endswith("as defined")]
    expected = [f"{name} pass relevance as defined" for name in failed]
    assert [check.what for check in checks if not check.passed] == expected


def test_an_operation_that_is_never_called_fails(tiny, monkeypatch):
    """As an attention would whose handler says that it goes through the interface, where it does not."""

    class Silent(torch.nn.Module):
        def forward(self, hidden_states, **_):
            return hidden_states, None

    monkeypatch.setattr(lrp_fast.hf.families, "_TABLE", dict(lrp_fast.hf.families._TABLE))
    lrp_fast.hf.register(Silent, lrp_fast.hf.handlers.attention)
    model = doctor._small(tiny("llama").config)
    for layer in model.model.layers:
        layer.self_attn = Silent()
    gaps = lrp_fast.hf.gaps_to_definitions(model, torch.tensor([[3, 4, 5]]))
    assert gaps["attentions"] != gaps["attentions"] and gaps["norms"] < 1e-12


def test_a_number_that_is_none_fails():
    assert not doctor.Check("", float("nan"), 1.0).passed


def test_the_command_line(tiny, tmp_path, capsys):
    tiny("qwen2").config.save_pretrained(tmp_path / "good")
    assert main(["doctor", str(tmp_path / "good")]) == 0
    out = capsys.readouterr().out
    assert "Qwen2Attention" in out and "  ok    edges in closed form" in out and "FAIL" not in out
    assert main(["doctor", str(tmp_path / "good"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] and {"name", "count", "path", "rule", "kernel", "mend"} == set(told["modules"][0])
    assert not any(one["mend"] for one in told["modules"])

    XLNET.save_pretrained(tmp_path / "bad")
    assert main(["doctor", str(tmp_path / "bad")]) == 1
    out = capsys.readouterr().out
    assert "NOT COVERED: transformer.layer.0.rel_attn" in out
    assert "  XLNetModel: cuts what depends on the hidden states off" in out and ", at modeling_xlnet.py:" in out
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert torch.get_default_dtype() == torch.float32


@pytest.fixture
def few_operations(monkeypatch):
    """The doctor looks at a few of them: what it says of all is said in test_operations.py."""
    own = doctor.cases

    def some(size):
        seen.append(size)
        return own(size)[::23]

    seen = []
    monkeypatch.setattr(doctor, "cases", some)
    return seen


def test_a_device_is_looked_at_without_a_model(few_operations, capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"operations on CPU, float32, PyTorch {torch.__version__}, ") and not err
    assert " ".join(lines[2].split()) == "operation form dtype computed by error allowed same bits"
    assert "attnlrp, head_dim 64" in lines[3] and lines[3].endswith("yes        ok")
    assert lines[-1] == f"All {len(lines) - 5} operations are as they are defined, within rounding."
    assert main(["doctor", "--device", "cpu", "--dtype", "bfloat16", "--impl", "torch", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"setting", "operations", "healthy"} and told["healthy"]
    assert told["setting"]["dtype"] == "bfloat16" and all(one["passed"] for one in told["operations"])
    assert {"operation", "form", "path", "tiles", "error", "allowed", "same_bits"} <= set(told["operations"][0])


def test_a_model_and_a_device_are_looked_at_together(few_operations, tiny, tmp_path, capsys, monkeypatch):
    tiny("qwen3").config.save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Qwen3Attention" in out and "attnlrp, head_dim 24" in out and few_operations[0].head_dims == (24,)

    monkeypatch.setattr(lrp_fast.ops, "attention", told("cp")(lrp_fast.ops.attention))
    assert main(["doctor", str(tmp_path), "--device", "cpu", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["healthy"] and {"modules", "checks", "weights", "setting", "operations"} < set(found)


def test_a_failing_operation_is_exit_status_1(few_operations, monkeypatch, capsys):
    monkeypatch.setattr(lrp_fast.ops, "attention", told("cp")(lrp_fast.ops.attention))
    monkeypatch.setattr(doctor, "cases", lambda size: lrp_fast.operations.cases(size)[1:2])
    assert main(["doctor", "--device", "cpu"]) == 1
    assert "1 of 1 operations FAILED: do not trust relevance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to look at: name a model, or a device with --device cuda, or both"),
        (["--dtype", "float16"], "--dtype is of the operations of a device: name it with --device, cuda say"),
        (["--impl", "torch"], "--impl is of the operations of a device: name it with --device, cuda say"),
        (["--device", "toaster"], "--device toaster cannot be used: "),
        (["--device", "meta"], "--device meta cannot be used: lrp-fast computes on none of that kind"),
    ],
)
def test_what_is_asked_wrongly_is_told(arguments, words, capsys):
    assert main(["doctor", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"lrp-fast: {words}") and err.count("\n") == 1
