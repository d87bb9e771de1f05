"""`lrp-fast attribute`: outputs, exit statuses, and what goes where."""

import json
import re

import pytest
import torch

import lrp_fast

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


def test_a_tolerance(run, tmp_path):
    status, out, _ = run(*PROMPT, "--tolerance", "0.01")
    assert status == 0
    assert "tolerance 0.01, nothing left out" in out  # so short a prompt is one tile
    assert lrp_fast.load(tmp_path / "attribution.safetensors").tolerance == 0.01
    assert json.loads((tmp_path / "attribution.json").read_text())["tolerance"] == 0.01


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*PROMPT, "--tolerance", "1"], "tolerance must be at least 0 and below 1"),
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
    assert re.search(message, err)
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} == {"latin.txt"}


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


def test_none_is_a_string_as_a_target(run):
    status, _, err = run(*PROMPT, "--target", "none", "--contrast", "new")  # not the model's own choice
    assert status == 2 and "target 'none' holds what the tokenizer does not know, and becomes ['[UNK]']" in err


def test_a_budget_is_kept_to(run, tmp_path):
    status, _, err = run(*PROMPT, "--host-budget", "100", "--offload-dir", str(tmp_path))
    assert status == 2 and "cannot hold one layer of 5 tokens" in err
    status, small, _ = run(*PROMPT, "--host-budget", "100kB", "--offload-dir", str(tmp_path), "--out", "small")
    assert status == 0
    status, large, _ = run(*PROMPT)
    assert small == large
    small, large = (lrp_fast.load(tmp_path / f"{name}.safetensors").layers for name in ("small", "attribution"))
    assert (small - large).abs().max() <= 1e-5 * large.abs().max()
