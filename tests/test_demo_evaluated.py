"""The cases that explanations are judged on are what demo/study/evaluated.py says."""

import json
import subprocess
import sys

import pytest

from lrp_fast import question
from lrp_fast.sources import divide
from lrp_fast.study import read_cases
from lrp_fast.tokenizer import read


def written(root, path, *options):
    command = [sys.executable, root / "demo" / "study" / "evaluated.py", path, *options]
    subprocess.run(list(map(str, command)), check=True, timeout=60)
    return read_cases(path)


@pytest.fixture(scope="module")
def cases(root, tmp_path_factory):
    return written(root, tmp_path_factory.mktemp("cases") / "short.jsonl")


def test_there_are_enough_of_each_kind(cases):
    kinds = {}
    for case in cases:
        assert case.left_out is None
        kinds.setdefault(case.fields["kind"], []).append(case)
    assert {kind: len(of) for kind, of in kinds.items()} == {
        "fact": 77, "negation": 60, "object": 75, "needle": 5, "needles": 3,
    }  # fmt: skip
    assert all(case.fields["length"] <= 140 for case in cases)


def test_the_same_seed_makes_the_same_cases(root, cases, tmp_path):
    assert written(root, tmp_path / "again.jsonl") == cases
    assert written(root, tmp_path / "other.jsonl", "--seed", "1") != cases


def test_two_answers_and_gold_spans(cases):
    for case in cases:
        assert case.target.startswith(" ") and case.contrast.startswith(" ") and case.target != case.contrast
        gold = [case.prompt[start:end] for _, start, end in case.fields["gold"]]
        assert gold and all(gold), case.id
        if case.fields["kind"].startswith("needle"):
            (sentence,) = gold
            assert case.target.strip() in sentence and sentence.endswith("."), case.id
    assert "answer" not in cases[0].fields and json.dumps(cases[0].as_line())


def test_needles_by_length_and_depth(root, tmp_path):
    cases = written(root, tmp_path / "n.jsonl", "--needles", "256", "8192", "--each", "1")
    where = [(case.fields["length"], case.fields["depth"]) for case in cases]
    assert where == [(length, depth) for length in (256, 8192) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for case in cases:
        (span,) = case.fields["gold"]
        assert abs(span[1] / len(case.prompt) - 0.97 * case.fields["depth"]) < 0.25, case.id


def test_a_model_can_be_asked_each(cases, smollm2):
    model, tokenizer = smollm2[0], read(smollm2[1])
    tokens = []
    for case in cases:
        asked = question.read(model, case.prompt, case.target, case.contrast, -1, "gradient", tokenizer)
        gold = divide({"gold": case.fields["gold"]}, asked.prompt, asked.tokens, tokenizer, len(asked.ids))
        assert (gold.groups == 0).any() and asked.positions == [len(asked.ids) - 1], case.id
        tokens.append(len(asked.ids))
    assert max(tokens) <= 180 and sum(tokens) / len(tokens) < 60
