"""Masked language models: which position is explained, what is refused, and the command line."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import lrp_fast
from lrp_fast import GraphSpec, attribute
from lrp_fast.cli import main
from lrp_fast.report.graph_html import write_graph_html
from lrp_fast.report.html import write_html
from lrp_fast.report.table import question
from tests import encoders

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "of", "france", "is", "paris", "london", "and",
    "so", "on",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": text for name, text in names.items()},
    )


@pytest.fixture(scope="module")
def model():
    return encoders.build("bert", dtype=torch.float32, vocab_size=len(WORDS))


TEXT = "the capital of france is [MASK] and so on"


def test_the_only_mask_token_is_explained(model, tokenizer):
    found = attribute(model, TEXT, target="paris", contrast="london", tokenizer=tokenizer)
    assert [term.position for term in found.explained.terms] == [6] and found.tokens[6] == "[MASK]"
    assert "next token" not in found.explained.note and "token_type_ids" not in found.explained.note
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0, 6]
    paris, london = WORDS.index("paris"), WORDS.index("london")
    assert abs(found.value - float(logits[paris] - logits[london])) <= 1e-5
    batch = tokenizer([TEXT, "[MASK] is paris"], padding=True, return_tensors="pt")
    rows = lrp_fast.attribute_batch(model, **batch, tokenizer=tokenizer)
    assert [one.explained.terms[0].position for one in rows] == [6, 1]
    assert found.explained.of == "masked token" and "at position 6" in question(found.explained, found.value)[0]


def test_any_other_position_is_taken_as_it_is(model, tokenizer):
    for position in (0, 10, [10], -2):
        found = attribute(model, TEXT, position=position, tokenizer=tokenizer)
        assert found.explained.terms[0].position == (position[0] if isinstance(position, list) else position % 11)
    for position in (np.int64(-1), torch.tensor(-1)):  # the same number
        assert attribute(model, TEXT, position=position, tokenizer=tokenizer).explained.terms[0].position == 6


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("the capital", {}, r"the prompt holds no mask token, .*\[MASK\].*: give position= to say which"),
        ("[MASK] of [MASK]", {}, r"the prompt holds 2 mask tokens, .*, at positions 1, 3: give position="),
        (TEXT, {"answer": "paris"}, "gives the logits of masked tokens, and no answer has any"),
        (TEXT, {"target": "paris and", "contrast": "paris so"}, "begin alike, and one masked token is compared"),
        (TEXT, {"target": "paris and"}, "is 2 tokens .* give a contrast string, or the id of one token$"),
        (tokenizers, {}, "input_ids must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_is_told(text, given, message, model, tokenizer):
    with pytest.raises((ValueError, TypeError), match=message):
        attribute(model, text, tokenizer=tokenizer, **given)


def test_without_a_tokenizer_nobody_knows_the_mask_token(model):
    with pytest.raises(ValueError, match="no tokenizer says what its mask token is: give position=, or tokenizer="):
        attribute(model, [2, 5, 4, 3])


def test_segments(model, tokenizer):
    """Of zeros they are what the model takes none for; a second segment is refused."""
    one = attribute(model, dict(tokenizer(TEXT)), tokenizer=tokenizer)
    assert torch.equal(one.layers, attribute(model, TEXT, tokenizer=tokenizer).layers)
    with pytest.raises(ValueError, match="token_type_ids came with the prompt, which BertForMaskedLM reads"):
        attribute(model, dict(tokenizer(TEXT, "so on")), tokenizer=tokenizer)


def test_hops_are_refused_and_cuts_go_both_ways(model, tokenizer):
    with pytest.raises(ValueError, match="gives the logits of masked tokens, and generates no tokens"):
        lrp_fast.hops(model, TEXT, [3], tokenizer=tokenizer)
    found = lrp_fast.ablate(model, TEXT, {"edges": [(2, 8, 6)]}, tokenizer=tokenizer)
    assert found.value != found.before
    other = [2, *range(13, 4, -1), 3]  # which holds no mask token
    found = lrp_fast.ablate(model, TEXT, {"tokens": [3]}, other, tokenizer=tokenizer)
    assert found.value != found.before and found.after.terms[0].position == 6
    plain = [2, 5, 6, 7, 3]  # nor does this one
    found = attribute(model, plain, 8, position=1)
    cut = lrp_fast.ablate(model, plain, {"nodes": [(0, 2)]}, result=found)
    assert cut.before == pytest.approx(found.value, rel=1e-4)
    assert cut.predicted == pytest.approx(-found.relevance[2].item())
    with pytest.raises(ValueError, match="gives the logits of masked tokens, and no answer has any"):
        lrp_fast.compare_answers(model, plain, [5], [6])


def test_files_and_pages(model, tokenizer, tmp_path):
    found = attribute(model, TEXT, tokenizer=tokenizer, graph=GraphSpec(topk=4))
    found.save(tmp_path / "case")
    assert lrp_fast.load(tmp_path / "case").explained == found.explained
    found.graph.save(tmp_path / "graph")
    loaded = lrp_fast.Graph.load(tmp_path / "graph")
    assert not loaded.causal and loaded.paths(3)
    write_html(found, tmp_path / "page.html")
    write_graph_html(loaded, tmp_path / "graph.html")
    assert "masked tokens" in (tmp_path / "page.html").read_text("utf-8")


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("masked")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_the_command_line(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where its files go
    assert main(["attribute", directory, "--prompt", TEXT, "--target", "paris", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["explained"]["of"] == "masked token" and told["explained"]["terms"][0]["position"] == 6
    assert main(["graph", directory, "--prompt", TEXT, "--topk", "3", "--save", str(tmp_path / "g.safetensors")]) == 0
    assert not lrp_fast.Graph.load(tmp_path / "g.safetensors").causal
    assert main(["plan", directory, "--tokens", "20", "--device", "cpu"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("config", [transformers.BertConfig(), transformers.ModernBertConfig()], ids=["bert", "modern"])
def test_the_doctor(config, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 0, capsys.readouterr().out
