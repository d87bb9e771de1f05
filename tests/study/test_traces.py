"""Trace files as Debug-XAI writes them, made up here."""

import json

import pytest

from lrp_fast.study import read_cases
from lrp_fast.study.folder import lines
from lrp_fast.study.table import plain_fields

TRACE = {
    "metadata": {"uuid": "u-1", "model": "some/model"},
    "prompt": "List two rivers. Use capitals. Use capitals twice. Write: ",
    "completion": "the Nile, the Rhine",
    "completion_before_err": "the ",
    "topk_token_explore": [
        {"rank": 1, "token_str": "' NILE'", "token_id": 21, "logit": 9.0, "eval_result": False, "completion": "..."},
        {"rank": 0, "token_str": "' Nile'", "token_id": 20, "logit": 9.5, "eval_result": False, "completion": "..."},
        {"rank": 2, "token_str": "' RHINE'", "token_id": 22, "logit": 8.0, "eval_result": True, "completion": "..."},
    ],
    "4b_topk_token_explore": [{"rank": 0, "token_str": "' Po'", "token_id": 5, "logit": 1.0, "eval_result": True}],
    "l_instruction_phases": ["List two rivers.", "Use capitals", "two rivers", "Use capitals twice."],
}


def test_a_trace_is_a_case(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(TRACE))
    (tmp_path / "a.json").write_text(json.dumps(TRACE | {"metadata": {"uuid": "u-0"}, "contrast_token": "' NILE'"}))
    named, best = read_cases(tmp_path)
    assert (named.id, named.target, named.contrast) == ("u-0", 20, 21)
    assert (best.id, best.target, best.contrast) == ("u-1", 20, 22)  # the best-ranked whose roll-out passed
    assert best.prompt == TRACE["prompt"] + "the "
    end = len(TRACE["prompt"])
    assert best.segments == {
        "instruction 1": ["chars", 0, 16],
        "instruction 4": ["chars", 31, 50],
        "completion": ["chars", end, end + 4],
    }
    assert best.prompt[31:50] == "Use capitals twice."
    told = best.fields["segments_left_out"]
    assert told.startswith("instruction 2 stands in the prompt 2 times")
    assert "; instruction 3 shares characters with one before it" in told
    assert plain_fields([named, best])["segments_left_out"] == [told, told]  # the table and the pages show it
    assert best.fields["metadata"]["model"] == "some/model" and best.fields["completion"] == "the Nile, the Rhine"
    assert (named.fields["contrast_from"], best.fields["contrast_from"]) == ("contrast_token", "topk_token_explore")


def test_a_contrast_that_is_no_candidate_is_text_and_so_is_a_siblings():
    none = [one | {"eval_result": False} for one in TRACE["topk_token_explore"]]
    given = [
        TRACE | {"contrast_token": '" AMAZON"', "metadata": {"uuid": "a"}},
        TRACE | {"topk_token_explore": none, "metadata": {"uuid": "b"}},
        TRACE | {"topk_token_explore": none, "4b_topk_token_explore": [], "metadata": {"uuid": "c"}},
        TRACE | {"topk_token_explore": [], "metadata": {"uuid": "d"}},
        TRACE | {"prompt": 3, "metadata": {"uuid": "e"}},
    ]
    text, sibling, nothing, empty, malformed = read_cases(given)
    assert (text.contrast, sibling.contrast) == (" AMAZON", " Po")
    assert sibling.fields["contrast_from"] == "4b_topk_token_explore"
    assert nothing.left_out == "the trace names no contrast, and no candidate's roll-out passed"
    assert nothing.fields["prompt"] == TRACE["prompt"] + "the "
    assert "the model's own next token is not known" in empty.left_out
    assert malformed.left_out == "item 5: a trace's prompt and completion_before_err must be strings"


@pytest.mark.parametrize("text", ["'", "''", '"', "'a", "a"])
def test_quotes_that_are_the_token_stay(text):
    trace = TRACE | {"contrast_token": text}
    assert read_cases([trace])[0].contrast == text


def test_one_file_is_one_case(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(TRACE))
    assert [one.id for one in read_cases(path)] == ["u-1"]
    path.write_text(json.dumps([TRACE, {"prompt": "x"}]))
    assert [one.id for one in read_cases(path)] == ["u-1", "item 2"]


def test_what_was_made_of_a_trace_is_read_again(tmp_path):
    """As a study's folder holds it: its lists are fields now, and no trace."""
    none = {"topk_token_explore": TRACE["topk_token_explore"][:2], "4b_topk_token_explore": []}
    found = read_cases([TRACE, TRACE | none | {"metadata": {"uuid": "u-2"}}])
    assert found[0].segments["completion"] and found[1].left_out
    (tmp_path / "cases.jsonl").write_bytes(lines([one.as_line() for one in found]))
    assert read_cases(tmp_path / "cases.jsonl") == found == read_cases(found)
