"""`lrp-fast attribute`: outputs, exit statuses, and what goes where."""

import json
import re

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast.observers import Heads, LogitLens, Neurons

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


def test_answers_and_log_probabilities(run, tmp_path):
    def explained(*options):
        status, out, _ = run(*PROMPT, *options)
        assert status == 0
        return lrp_fast.load(tmp_path / "attribution.safetensors"), out

    result, out = explained("--answer", "new zealand", "--logprob")
    assert result.tokens == ["the", "capital", "of", "australia", "is", "new"]
    assert [(term.position, term.target.text) for term in result.explained.terms] == [(4, "new"), (5, "zealand")]
    assert out.startswith("Why these 2 next tokens? The sum of their log-probabilities is -")
    assert "The answer is 2 tokens, all but the last of which now end the prompt" in out
    result, out = explained("--answer", "new zealand")  # each against the best other token
    assert result.explained.kind == "difference" and "best next tokens" not in out
    assert all(term.contrast == term.runner_up for term in result.explained.terms)
    result, _ = explained("--answer", "new zealand", "--contrast", "none")
    assert result.explained.kind == "logit"
    result, _ = explained("--answer", "new zealand", "--contrast", "new sydney")
    ((term,), kind) = result.explained.terms, result.explained.kind
    assert (term.position, term.target.text, term.contrast.text, kind) == (5, "zealand", "sydney", "difference")
    result, out = explained("--logprob")
    assert result.explained.kind == "logprob" and result.explained.terms[0].target.rank == 0
    assert "best next tokens" in out and "log-probability -" in out


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


def test_sources(run, tmp_path):
    (tmp_path / "parts.json").write_text('{"who": "australia", "what": [["chars", 4, 11], [0, 1]]}', "utf-8")
    status, out, _ = run(*PROMPT, "--sources", "parts.json")
    assert status == 0 and "sums over the tokens of 3 sources" in out
    found = lrp_fast.load(tmp_path / "attribution.safetensors")
    assert {name: found.sources.positions(name) for name in found.sources.names} == {
        "who": [3], "what": [0, 1], "(rest)": [2, 4]
    }  # fmt: skip
    assert json.loads((tmp_path / "attribution.json").read_text())["sources"][0]["name"] == "who"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read --sources: .*parts.json"),
        ("{", "--sources parts.json is no JSON"),
        ('{"a": "x", "a": "y"}', "--sources parts.json is no JSON: it says 'a' twice"),
        ("[1, 2]", "--sources parts.json must hold a JSON object of names and spans"),
        ('{"a": "paris"}', "the text of source 'a' does not stand in the prompt"),
    ],
)
def test_sources_that_are_none(run, tmp_path, text, message):
    if text is not None:
        (tmp_path / "parts.json").write_text(text, "utf-8")
    status, out, err = run(*PROMPT, "--sources", "parts.json")
    assert status == 2 and re.search(message, err) and not out
    assert not list(tmp_path.glob("attribution*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*PROMPT, "--tolerance", "1"], "tolerance must be at least 0 and below 1"),
        ([], "one of the arguments --prompt --prompt-file is required"),
        (["--prompt", ""], "input_ids is empty"),
        (["--prompt-file", "absent.txt"], "cannot read the prompt: .*absent.txt"),
        (["--prompt-file", "latin.txt"], "is no UTF-8 text"),
        ([*PROMPT, "--top", "0"], "0 is too few"),
        ([*PROMPT, "--heads", "0"], "0 is too few: give 1 or more"),
        ([*PROMPT, "--neurons", "all"], "invalid count value: 'all'"),
        ([*PROMPT, "--rule", "lrp"], "invalid choice: 'lrp'"),
        ([*PROMPT, "--target", "id:99"], "target 99 is outside the vocabulary, 0 to 10"),
        ([*PROMPT, "--target", "sydney", "--contrast", "sydney"], "never diverge"),
        (
            [*PROMPT, "--target", "new zealand"],
            "target 'new zealand' is 2 tokens .*, and no contrast says where to look",
        ),
        ([*PROMPT, "--target", "new zealand", "--contrast", "new"], "never diverge"),
        ([*PROMPT, "--answer", "new", "--target", "new"], "--target and --answer both say what is explained"),
        ([*PROMPT, "--answer", "new", "--position", "1"], "an answer stands behind the prompt"),
        ([*PROMPT, "--answer", "new zealand", "--contrast", "new"], "answer 'new zealand' and contrast 'new' never"),
        ([*PROMPT, "--logprob", "--contrast", "mean"], "--logprob takes no --contrast"),
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


def test_an_answer_by_token(run, tmp_path):
    status, out, err = run(*PROMPT, "--answer", "new zealand", "--contrast", "none", "--by-token")
    assert status == 0 and out.startswith("Why 'new' after position 4?") and "\n\nWhy 'zealand' after" in out
    assert "attribution-1.safetensors to attribution-2.safetensors" in err.replace(f"{tmp_path}/", "")
    one, two = (lrp_fast.load(tmp_path / f"attribution-{i}.safetensors") for i in (1, 2))
    assert not (tmp_path / "attribution.safetensors").exists()
    assert [one.explained.terms[0].target.text, two.explained.terms[0].target.text] == ["new", "zealand"]
    told = json.loads((tmp_path / "attribution.json").read_text())
    assert [record["value"] for record in told] == [one.value, two.value]
    page = (tmp_path / "attribution.html").read_text("utf-8")
    assert '{"choices":[{' in page
    status, _, err = run(*PROMPT, "--by-token")
    assert status == 2 and "--by-token explains each token of an answer: give --answer" in err


def test_observers(run, tmp_path, directory):
    two = ("--target", "sydney", "--contrast", "canberra")
    status, plain, _ = run(*PROMPT, *two)
    assert status == 0 and "observed" not in json.loads((tmp_path / "attribution.json").read_text())
    status, out, _ = run(*PROMPT, *two, "--heads", "3", "--neurons", "--lens")
    assert status == 0 and out.startswith(plain)
    told = json.loads((tmp_path / "attribution.json").read_text())["observed"]

    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    observe = [Heads(), Neurons(k=None), LogitLens()]
    heads, neurons, lens = lrp_fast.attribute(
        model, PROMPT[1], "sydney", "canberra", tokenizer=tokenizer, observe=observe
    ).observed
    groups = heads.output.shape[1] // heads.key.shape[1]
    strongest = heads.output.abs().flatten().sort(descending=True).values[:3].tolist()
    assert [abs(one["output"]) for one in told["heads"]] == strongest
    for one in told["heads"]:
        layer, head = one["layer"], one["head"]
        assert one["kv_head"] == head // groups and one["output"] == heads.output[layer, head].item()
        assert one["query"] == heads.query[layer, head].item()
        assert (one["key"], one["value"]) == (
            heads.key[layer, head // groups].item(), heads.value[layer, head // groups].item()
        )  # fmt: skip
        assert f"{layer:5d}  {head:5d}  {head // groups:7d}  {one['output']:+#11.4g}  {one['query']:+#11.4g}" in out
    strongest = neurons.relevance.abs().sort(descending=True).values[:10].tolist()
    assert [abs(one["relevance"]) for one in told["neurons"]] == strongest
    place = {(layer, one): i for i, (layer, one) in enumerate(zip(*map(torch.Tensor.tolist, neurons[:2]), strict=True))}
    for one in told["neurons"]:
        assert one["relevance"] == neurons.relevance[place[one["layer"], one["neuron"]]].item()
    assert told["lens"] == {
        "positions": [4], "scores": lens.scores.tolist(), "commitment": lens.commitment.tolist()
    }  # fmt: skip
    assert f"the last: {lens.commitment.item()}\n" in out and f"    0  {lens.scores[0, 0]:+#11.4g}" in out


def test_observers_of_answers(run, tmp_path):
    answer = ("--answer", "new zealand", "--contrast", "none")
    status, out, _ = run(*PROMPT, *answer, "--lens", "--heads", "1")
    assert status == 0 and "layer      after 4      after 5\n" in out and "neurons" not in out
    together = json.loads((tmp_path / "attribution.json").read_text())["observed"]
    status, out, _ = run(*PROMPT, *answer, "--lens", "--by-token", "--json")
    assert status == 0
    one, two = (record["observed"]["lens"] for record in json.loads(out))
    assert (one["positions"], two["positions"]) == ([4], [5]) and together.keys() == {"heads", "lens"}
    assert [a + b for a, b in zip(one["scores"], two["scores"], strict=True)] == together["lens"]["scores"]
    status, out, _ = run(*PROMPT, *answer, "--lens", "--by-token")
    assert out.count("logit lens:") == 2 and out.index("logit lens:") < out.index("Why 'zealand'")
    status, out, err = run(*PROMPT, "--answer", "new zealand", "--logprob", "--lens", "--out", "other")
    assert status == 2 and not out and "LogitLens scores logits and their differences" in err
    assert not list(tmp_path.glob("other*"))


def test_none_is_a_string_as_a_target(run):
    status, _, err = run(*PROMPT, "--target", "none", "--contrast", "new")  # not the model's own choice
    assert status == 2 and "target 'none' holds what the tokenizer does not know, and becomes ['[UNK]']" in err


def test_a_budget_is_kept_to(run, tmp_path):
    status, _, err = run(*PROMPT, "--host-budget", "100", "--offload-dir", str(tmp_path))
    assert status == 2 and "cannot hold one layer of 5 tokens" in err
    status, small, _ = run(*PROMPT, "--host-budget", "300kB", "--offload-dir", str(tmp_path), "--out", "small")
    assert status == 0
    status, large, _ = run(*PROMPT)
    assert small == large
    small, large = (lrp_fast.load(tmp_path / f"{name}.safetensors").layers for name in ("small", "attribution"))
    assert (small - large).abs().max() <= 1e-5 * large.abs().max()
