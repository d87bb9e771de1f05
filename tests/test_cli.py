"""The command line, on a tiny model directory written here: outputs, exit statuses, and what goes where."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import lrp_fast
from lrp_fast import cli
from lrp_fast.cli import main

WORDS = ["<s>", "[UNK]", *["the", "capital", "of", "australia", "is", "sydney", "canberra", "new", "zealand"]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("model")
    tiny("llama", vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]").save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def run(directory, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=directory):
        try:
            status = main(["attribute", model, *arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


PROMPT = ("--prompt", "the capital of australia is")


def test_without_a_target_it_explains_the_first_against_the_second(run, tmp_path):
    status, out, err = run(*PROMPT)
    assert status == 0
    assert {p.name for p in tmp_path.iterdir()} == {"attribution.html", "attribution.json", "attribution.safetensors"}
    result = lrp_fast.load(tmp_path / "attribution.safetensors")
    (term,) = result.explained.terms
    assert (term.target.rank, term.contrast.rank, result.explained.kind) == (0, 1, "difference")
    assert len(result.explained.best) == 10
    for token in result.explained.best:
        assert token.text in out
    assert "loading" in err and "wrote attribution.html" in err and "loading" not in out


def test_json_goes_to_stdout_alone(run, tmp_path):
    status, out, err = run(*PROMPT, "--json", "--target", "sydney", "--contrast", "canberra", "--out", "case")
    assert status == 0
    record = json.loads(out)
    assert record == json.loads((tmp_path / "case.json").read_text())
    result = lrp_fast.load(tmp_path / "case.safetensors")
    assert record["value"] == result.value and result.explained.terms[0].contrast.text == "canberra"
    assert "sydney" in (tmp_path / "case.html").read_text()


@pytest.mark.parametrize(
    "contrast, kind",
    [("mean", "mean"), ("top:3", "top"), ("none", "logit"), ("id:4", "difference"), ("new", "difference")],
)
def test_contrasts(run, tmp_path, contrast, kind):
    assert run(*PROMPT, "--target", "id:7", "--contrast", contrast)[0] == 0
    assert lrp_fast.load(tmp_path / "attribution.safetensors").explained.kind == kind


def test_prompt_files_and_rules(run, tmp_path):
    (tmp_path / "case.txt").write_text("the capital of australia is", "utf-8")
    values = {}
    for rule in ("attnlrp", "cp", "gradient"):
        assert run("--prompt-file", "case.txt", "--rule", rule, "--out", rule)[0] == 0
        values[rule] = lrp_fast.load(tmp_path / f"{rule}.safetensors").relevance
    assert not torch.equal(values["attnlrp"], values["cp"]) and not torch.equal(values["cp"], values["gradient"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of the arguments --prompt --prompt-file is required"),
        (["--prompt", ""], "input_ids is empty"),
        (["--prompt-file", "absent.txt"], "cannot read the prompt: .*absent.txt"),
        (["--prompt-file", "latin.txt"], "is no UTF-8 text"),
        ([*PROMPT, "--top", "0"], "0 is not a number of tokens"),
        ([*PROMPT, "--rule", "lrp"], "invalid choice: 'lrp'"),
        ([*PROMPT, "--target", "id:99"], "target 99 is outside the vocabulary, 0 to 10"),
        ([*PROMPT, "--target", "sydney", "--contrast", "sydney"], "never diverge"),
        (
            [*PROMPT, "--target", "new zealand"],
            "target 'new zealand' is 2 tokens .*, and no contrast says where to look",
        ),
        ([*PROMPT, "--target", "new zealand", "--contrast", "new"], "never diverge"),
        ([*PROMPT, "--position", "7"], "position 7 is outside the prompt's 5 tokens"),
        ([*PROMPT, "--out", "absent/case"], "name files with --out in a folder that exists"),
        ([*PROMPT, "--out", "."], "--out . names no file"),
        ([*PROMPT, "--device", "nonsense"], "--device nonsense cannot be used"),
        ([*PROMPT, "--chat"], "has no chat template"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2_and_one_sentence(run, tmp_path, arguments, message):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    status, out, err = run(*arguments)
    assert status == 2 and out == ""
    import re

    assert re.search(message, err)
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} == {"latin.txt"}


def test_a_model_that_is_not_there_exits_with_2(run, tmp_path):
    status, out, err = run(*PROMPT, model=str(tmp_path / "no-model"))
    assert status == 2 and "cannot load" in err and out == ""


def test_an_interrupt_writes_nothing(run, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(lrp_fast, "attribute", interrupted)
    status, out, err = run(*PROMPT)
    assert status == 130 and "interrupted" in err and not list(tmp_path.iterdir())


def test_strings_that_begin_alike_are_compared_behind_their_prefix(run, tmp_path):
    status, out, _ = run(*PROMPT, "--target", "new sydney", "--contrast", "new zealand")
    assert status == 0
    result = lrp_fast.load(tmp_path / "attribution.safetensors")
    assert result.tokens == ["the", "capital", "of", "australia", "is", "new"]
    (term,) = result.explained.terms
    assert (term.target.text, term.contrast.text, term.position) == ("sydney", "zealand", 5)
    assert "share their first 1 token 'new', which now ends the prompt" in result.explained.note
    assert result.explained.note in out


def test_a_newline_at_the_end_of_a_prompt_file_is_not_part_of_the_prompt(run, tmp_path):
    for text in ("the capital of australia is", "the capital of australia is\n"):
        (tmp_path / "case.txt").write_text(text, "utf-8")
        status, out, _ = run("--prompt-file", "case.txt", "--json")
        assert status == 0 and len(json.loads(out)["tokens"]) == 5


def test_none_and_mean_are_strings_as_targets(run, tmp_path):
    assert run(*PROMPT, "--target", "none", "--contrast", "new")[0] == 0
    (term,) = lrp_fast.load(tmp_path / "attribution.safetensors").explained.terms
    assert term.target.text == "[UNK]"  # a word that this tokenizer does not know, not the model's own choice


def test_a_checkpoint_with_missing_weights_is_refused(run, directory, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    status, out, err = run(*PROMPT, model=str(broken))
    assert status == 2 and out == "" and "lack 1 that the model has, model.layers.1.mlp.up_proj.weight first" in err
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    status, out, err = run(*PROMPT, model=str(broken))
    assert status == 2 and "cannot load" in err and "Traceback" not in err


def test_a_budget_is_kept_to(run, tmp_path):
    status, _, err = run(*PROMPT, "--host-budget", "100", "--offload-dir", str(tmp_path))
    assert status == 2 and "cannot hold one layer of 5 tokens" in err
    status, small, _ = run(*PROMPT, "--host-budget", "100kB", "--offload-dir", str(tmp_path), "--out", "small")
    assert status == 0
    status, large, _ = run(*PROMPT)
    assert small == large
    small, large = (lrp_fast.load(tmp_path / f"{name}.safetensors").layers for name in ("small", "attribution"))
    assert (small - large).abs().max() <= 1e-5 * large.abs().max()


@pytest.mark.parametrize(
    ("text", "size"),
    [("800MB", 800_000_000), ("60 GB", 60 * 10**9), ("1.5TiB", 3 * 2**39), ("512", 512), ("2kib", 2048), ("7B", 7)],
)
def test_sizes_read_as_people_write_them(text, size):
    assert cli._bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1XB", "1e9", "GB"])
def test_what_is_no_size_is_refused(text, directory, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", directory, "--tokens", "10", f"--host-budget={text}"])
    assert stop.value.code == 2 and "is no size: write 800MB, 60GB" in capsys.readouterr().err


def test_a_plan_needs_no_weights(directory, tmp_path, capsys):
    config = tmp_path / "only" / "config.json"
    config.parent.mkdir()
    config.write_bytes((Path(directory) / "config.json").read_bytes())
    assert main(["plan", str(config.parent), "--tokens", "100000", "--device-budget", "0.5GB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("100,000 tokens of ") and "float32, rule attnlrp" in out and "on cuda" in out
    assert main(["plan", str(config.parent), "--tokens", "1000", "--device", "cpu", "--json", "--targets", "2"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["tiers"] == ["graph"] * 3 and planned["n_tokens"] == 1000 and planned["peak"]["cpu"] > 0


def test_a_plan_says_what_is_wrong(directory, tmp_path, capsys):
    assert main(["plan", str(tmp_path / "none"), "--tokens", "10"]) == 2
    assert "cannot read the config of" in capsys.readouterr().err
    assert main(["plan", directory, "--tokens", "100000", "--device-budget", "1MB"]) == 2
    assert "on cuda cannot hold one layer of 100000 tokens: at least" in capsys.readouterr().err
