"""Cases are read as they were written, and what cannot be read is told."""

import json
import re

import numpy as np
import pytest

from lrp_fast.study import Case, read_cases
from lrp_fast.study.folder import lines as written


def lines(path, *given):
    path.write_bytes(b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in given))
    return path


def test_a_file_of_cases(tmp_path):
    path = lines(
        tmp_path / "cases.jsonl",
        {"id": "a", "prompt": "one", "target": " x", "contrast": 5, "bench": "math", "position": [0, 1]},
        b"\n",
        {"id": 7, "messages": [{"role": "user", "content": "two"}], "contrast": ["top", 3], "more": {"deep": [1]}},
        {"input_ids": [1, 2], "target": ["logprob", "y"], "segments": {"d": [0, 2], "q": ["chars", 4, 5], "n": None}},
    )  # fmt: skip
    one, two, three = read_cases(path)
    assert (one.id, one.prompt, one.target, one.contrast, one.position) == ("a", "one", " x", 5, [0, 1])
    assert one.fields == {"bench": "math"} and one.left_out is None
    assert (two.id, two.contrast, two.fields) == ("7", ("top", 3), {"more": {"deep": [1]}})
    assert two.prompt == [{"role": "user", "content": "two"}] and two.position == -1
    assert (three.id, three.target) == ("line 4", ("logprob", "y"))
    assert three.segments == {"d": [0, 2], "q": ["chars", 4, 5]}


WRONG = [
    (b"{not json\n", "line 2: it is no JSON in UTF-8: "),
    (b'{"id": "\xff"}\n', "line 2: it is no JSON in UTF-8: "),
    ([1, 2], "line 2: a case must be an object of names and values, not list"),
    ({"id": "b"}, "line 2: it has no prompt: give one of prompt, messages, input_ids"),
    ({"id": "b", "prompt": "x", "input_ids": [1]}, "line 2: it has prompt and input_ids: give one of "),
    ({"id": "b", "prompt": 3}, "line 2: prompt must be a string, not 3"),
    ({"id": "b", "input_ids": ["x"]}, "line 2: input_ids must be token ids, not ['x']"),
    ({"id": "b", "messages": []}, "line 2: messages must be a list of messages, not []"),
    ({"id": "b", "prompt": "x", "target": [1, 2]}, 'line 2: target must be a string, a token id or ["logprob", ...]'),
    ({"id": "b", "prompt": "x", "contrast": True}, 'line 2: contrast must be a string, a token id or ["top", ...]'),
    ({"id": "b", "prompt": "x", "segments": ["x"]}, "line 2: segments must be an object of names and spans"),
    ({"id": "half \ud83d", "prompt": "x"}, "line 2: id is no text: it holds half of a character"),
    ({"id": True, "prompt": "x"}, "line 2: id must be a string or a whole number, not True"),
    ({"id": "a", "prompt": "x"}, "line 2: the id 'a' is that of line 1 too: give each case its own"),
    ({"id": "b", "left_out": 3}, "line 2: left_out must be a sentence, not 3"),
]


@pytest.mark.parametrize(("line", "why"), WRONG, ids=[why[8:40] for _, why in WRONG])
def test_a_malformed_line_is_told_and_the_rest_go_on(line, why, tmp_path):
    good = {"id": "a", "prompt": "one"}
    found = read_cases(lines(tmp_path / "cases.jsonl", good, line, good | {"id": "c"}))
    assert [one.left_out is None for one in found] == [True, False, True]
    assert found[1].left_out.startswith(why) and found[1].prompt is None
    assert len({one.id for one in found}) == 3


def test_a_name_that_a_line_without_one_would_have():
    found = read_cases([{"id": "item 2", "prompt": "x"}, {"prompt": "y"}])
    assert [one.id for one in found] == ["item 2", "item 2 again"] and found[1].left_out is not None


def test_what_is_written_is_read_again(tmp_path):
    given = [
        {"id": "a", "prompt": "one \u2603", "target": ["logprob", 3], "bench": "math"},
        {"id": "b", "prompt": "half \ud83d"},
        {"id": "c", "messages": [{"role": "user", "content": "x"}], "contrast": ["top", 2], "segments": {"s": [0, 1]}},
        {"id": "d", "left_out": "no pair", "prompt": "kept", "bench": "math"},
        {"id": "e"},
    ]
    found = read_cases(given)
    path = tmp_path / "cases.jsonl"
    path.write_bytes(written([one.as_line() for one in found]))
    assert read_cases(path) == found == read_cases(found)
    assert "\u2603" in path.read_text("utf-8")


@pytest.mark.parametrize("depth", [190, 250, 3000])
def test_what_lies_too_deep_costs_its_own_case(depth, tmp_path):
    """Too deep to be written, or to be read again from the run's folder."""
    deep = 0
    for _ in range(depth):
        deep = [deep]
    found = read_cases([{"id": "a", "prompt": "x", "deep": deep}, {"id": "b", "prompt": "y"}])
    assert (found[0].left_out is None) == (depth == 190) and found[1].left_out is None
    if depth > 190:
        assert re.search("item 1: its lists and dicts lie .*deep within each other", found[0].left_out)
    assert read_cases(lines(tmp_path / "cases.jsonl", written([one.as_line() for one in found]))) == found


def test_arrays_and_numbers_of_numpy():
    (one,) = read_cases([{"id": np.int64(3), "input_ids": np.array([4, 5]), "score": np.float32(0.5), "nan": np.nan}])
    assert (one.id, one.prompt, one.fields) == ("3", [4, 5], {"score": 0.5})


def test_a_dataset_is_cases_and_its_nulls_are_nothing():
    datasets = pytest.importorskip("datasets")
    rows = [{"id": "a", "prompt": "x", "input_ids": None, "segments": {"p": "x"}}, {"id": "b", "input_ids": [1, 2]}]
    made = datasets.Dataset.from_list([*rows, {"id": "c", "prompt": "y", "segments": {"q": "y"}}]).select([0, 1])
    one, two = read_cases(made)
    assert (one.prompt, one.segments, two.prompt, two.segments) == ("x", {"p": "x"}, [1, 2], {})
    with pytest.raises(TypeError, match="cases is one DatasetDict: name one of its splits, such as \\['test'\\]"):
        read_cases(datasets.DatasetDict({"test": made}))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"id": "a", "prompt": "x"}, TypeError, "cases is one dict: give a list of cases, [case] for one"),
        (3, TypeError, "cases must be a file, a dataset or a sequence of dicts, not int"),
        ([], ValueError, "there are no cases: give one at least"),
        ([Case("a", "x"), Case("a", "y")], ValueError, "two cases are called 'a'"),
    ],
)
def test_what_holds_no_cases_is_refused(given, error, message):
    with pytest.raises(error) as caught:
        read_cases(given)
    assert message in str(caught.value)


def test_a_file_without_cases_is_named(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match="there are no cases in '.*none.jsonl': give one at least"):
        read_cases(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case("b", 3), "item 2: prompt must be a string, not 3"),
        (Case("b"), "item 2: it has no prompt: give one of prompt, messages, input_ids"),
        (Case("b", []), "item 2: input_ids must be token ids, not []"),
        (Case(True, "x"), "item 2: id must be a string or a whole number, not True"),
        (Case("", "x"), "item 2: id must be a string or a whole number, not ''"),
        (Case("b", "x", 1.5), "item 2: target must be a string, a token id or"),
        (Case("b", "x", segments=["s"]), "item 2: segments must be an object of names and spans, not ['s']"),
        (Case("b", "x", fields=3), "item 2: fields must be an object of names and values, not 3"),
        (Case("b", "x", fields={"target": 3}), "item 2: a field is called 'target', as what a case is made of"),
        (Case("b", "x", fields={"s": {1}}), "item 2: it holds a set, which JSON has no form for"),
        (Case("b", left_out=3), "item 2: left_out must be a sentence, not 3"),
    ],
    ids=str,
)
def test_a_malformed_case_of_a_program_is_told_too(case, why):
    found = read_cases([Case("a", "x"), case, Case("c", "y")])
    assert [one.left_out is None for one in found] == [True, False, True]
    assert found[1].left_out.startswith(why)


def test_a_case_of_a_program_is_read_as_a_line_would_be():
    given = [Case(3, np.array([4, 5]), ("logprob", 6), fields={"score": np.float32(0.5), "none": None})]
    assert read_cases(given) == [Case("3", [4, 5], ("logprob", 6), fields={"score": 0.5})]
