import json
from dataclasses import asdict, replace

import pytest

from lrp_fast.report.record import as_json, rule_words
from lrp_fast.rules import Rules


def test_the_record_is_strict_json_and_complete(attribution, hostile):
    result = attribution(hostile, special=[True] + [False] * (len(hostile) - 1), note="n")
    record = json.loads(json.dumps(as_json(result), allow_nan=False))
    assert (record["value"], record["model"], record["rules"]) == (result.value, "a/model", asdict(result.rules))
    assert record["explained"] == asdict(result.explained)
    assert (record["num_layers"], record["num_tokens"]) == (3, len(hostile))
    assert [token["text"] for token in record["tokens"]] == hostile
    assert [token["relevance"] for token in record["tokens"]] == result.relevance.tolist()
    assert record["tokens"][1] == {
        "position": 1, "id": 8, "text": hostile[1], "special": False, "relevance": result.relevance[1].item(),
    }  # fmt: skip


def test_without_a_tokenizer_text_and_special_are_unknown(attribution):
    assert [(token["text"], token["special"]) for token in as_json(attribution(2))["tokens"]] == [(None, None)] * 2


def test_infinite_logits_become_null_and_infinite_relevance_is_refused(attribution, candidates):
    result = attribution(["a", "b"])
    best = [*candidates[:9], replace(candidates[9], logit=float("-inf"))]
    result = replace(result, explained=replace(result.explained, best=best))
    assert json.loads(json.dumps(as_json(result), allow_nan=False))["explained"]["best"][9]["logit"] is None
    result.layers[0, 1] = float("inf")
    with pytest.raises(ValueError, match="layer 0, position 1 is inf"):
        as_json(result)


def test_rules_are_named_with_what_is_switched_on():
    assert rule_words(Rules()) == "attnlrp"
    assert rule_words(Rules("cp", gamma=0.25, attention_epsilon=1e-9)) == "cp, gamma 0.25, attention epsilon 1e-09"
