"""The README's worked study is of the committed results, and these of what a search for pairs says."""

import importlib
import json
import sys

import pytest


@pytest.fixture
def worked(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    found = importlib.import_module("worked_study")
    yield found
    sys.modules.pop("worked_study")


def test_the_readme_says_what_was_found(worked, root):
    pytest.importorskip("matplotlib")
    families = importlib.import_module("families")
    _, inside, _ = families.between_marks((root / "README.md").read_text("utf-8"), worked.MARKS)
    assert inside == worked.section(), "run benchmarks/worked_study.py"
    assert (root / worked.PICTURE).read_text("utf-8") == worked.picture(worked.read("worked_study"))


def test_the_figures_in_its_words_are_those_of_the_results(worked, root):
    told = worked.read("worked_study")["runs"]
    text = " ".join((root / "README.md").read_text("utf-8").split()).replace("−", "-")
    segments = {name: {row["segment"]: row for row in run["segments"]} for name, run in told.items()}
    for name, segment, sign in (("smollm2", "needle", ""), ("smollm2", "distractor", "+")):
        row = segments[name][segment]
        numbers = [f"{row[key]:.2f}" for key in ("relevance", "relevance_low", "relevance_high")]
        assert f"({segment}, {sign}{numbers[0]}," in text and f"{numbers[1]} to {numbers[2]})" in text
    assert f"(*(rest)*, {segments['gemma3']['(rest)']['relevance']:.2f})" in text
    both = [(told[name]["findings"]["both"], sum(told[name]["findings"].values())) for name in ("smollm2", "gemma3")]
    assert f"{both[0][0]} of {both[0][1]} findings are *both*, and Gemma 3's {both[1][0]} of {both[1][1]}" in text
    kinds = [told[name]["kinds"].values() for name in ("smollm2", "gemma3")]
    wrong = [sum(sum(one.values()) - one["right"] for one in some) for some in kinds]
    pairs = [sum(one.get("pair", 0) for one in some) for some in kinds]
    assert f"{wrong[0]} and {wrong[1]} wrong answers no more than {pairs[0]} and {pairs[1]} have a pair" in text
    for one, other, segment in ((1, -1, "scene"), (1, 1, "turn")):
        found = [segments[name][segment]["relevance"] for name in ("smollm2", "gemma3")]
        assert found[0] * one > 0 and found[1] * other > 0


def test_what_became_of_a_prompt(worked):
    whys = {
        None: "pair", "the answer is right: ' not above'": "right",
        "the logit difference is 0.5, which is not above the bound, 1": "below",
        "no roll-out of the 4 best tokens at any of the 8 positions passes": "none",
    }  # fmt: skip
    assert {why: worked.became(why) for why in whys} == whys


def test_it_reads_a_folder_of_runs(worked, tiny, tmp_path, monkeypatch):
    study = pytest.importorskip("lrp_fast.study")
    pytest.importorskip("matplotlib")
    case = {"id": "a", "input_ids": [3, 5, 7], "target": 2, "contrast": 4, "segments": {"one": [0, 1]}, "kind": "fact"}
    right = {"id": "b", "left_out": "the answer is right: 'x'", "kind": "fact"}
    for name in worked.RUNS:
        (tmp_path / f"pairs-{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (case, right)))
        study.run(tiny("llama"), tmp_path / f"pairs-{name}.jsonl", tmp_path / f"run-{name}")
    told = worked.found(tmp_path)
    assert told["runs"]["gemma3"]["kinds"] == {"fact": {"pair": 1, "right": 1}}
    assert [row["segment"] for row in told["runs"]["gemma3"]["segments"]] == ["one", "(rest)"]
    (tmp_path / "worked_study.json").write_text(json.dumps(told))
    assert "| fact | 2 | 1 | 1 | 0 | 0 |" in worked.section(tmp_path)
    assert worked.picture(told).startswith("<svg")
