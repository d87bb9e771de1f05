"""Public sets, by a stand-in for what is loaded."""

import sys
from types import SimpleNamespace

import pytest

from lrp_fast.evaluate import SETS, load_set
from lrp_fast.study import read_cases
from lrp_fast_cli import evaluate as options

ROWS = {
    "known_1000": [
        {"known_id": 3, "subject": "Vinson Massif", "attribute": "Antarctica", "template": "{} is located in",
         "prediction": " of the continent", "prompt": "Vinson Massif is located in", "relation_id": "P30"},
    ],
    "ioi": [
        {"prompt": "As Ann and Bob left the park, Bob gave a ring to", "choices": ["Ann", "Bob"], "answerKey": 0},
        {"prompt": "As Ann and Bob left the park, Ann gave a ring to", "choices": ["Ann", "Bob"], "answerKey": 1},
        {"prompt": "Ann", "choices": ["Ann"], "answerKey": 0},
    ],
    "squad_v2": [
        {"id": "x", "title": "t", "context": "The river is long.", "question": "What is long?",
         "answers": {"text": ["river", "The river"], "answer_start": [4, 0]}},
        {"id": "y", "title": "t", "context": "The river is long.", "question": "Who is it?",
         "answers": {"text": [], "answer_start": []}},
    ],
}  # fmt: skip


class Rows(list):
    @property
    def column_names(self):
        return list(self[0])


@pytest.fixture
def asked(monkeypatch):
    """What `load_dataset` was asked for, which answers with the rows above."""
    calls = []

    def load_dataset(path, **given):
        calls.append({"path": path} | given)
        (name,) = (name for name, one in SETS.items() if dict(one.given) == calls[-1])
        return Rows(ROWS[name])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def texts(case):
    return [case.prompt[start:end] for _, start, end in case.fields["gold"]]


def test_a_fact(asked):
    (case,) = read_cases(load_set("known_1000"))
    assert asked == [
        {"path": "json", "data_files": "https://rome.baulab.info/data/dsets/known_1000.json", "split": "train"}
    ]
    assert (case.id, case.prompt) == ("known_1000-3", "Vinson Massif is located in")
    assert (case.target, case.contrast, case.fields["answer"]) == (None, ("top", 1), " Antarctica")
    assert texts(case) == ["Vinson Massif"]


def test_an_indirect_object(asked):
    one, other = read_cases(load_set("ioi"))
    assert asked == [{"path": "mib-bench/ioi", "split": "test"}]
    assert (one.id, one.target, one.contrast, texts(one)) == ("ioi-0", " Ann", " Bob", ["Ann"])
    assert (other.id, other.target, other.contrast, texts(other)) == ("ioi-1", " Bob", " Ann", ["Bob"])


def test_a_passage(asked):
    (case,) = read_cases(load_set("squad_v2"))
    assert asked == [{"path": "rajpurkar/squad_v2", "split": "validation"}]
    assert case.prompt == "The river is long.\n\nQuestion: What is long?\nAnswer:"
    assert (case.id, texts(case), case.fields["answer"]) == ("squad_v2-x", ["river"], " river")
    assert (case.target, case.contrast) == (None, ("top", 1))


def test_so_many_are_drawn_by_the_seed(asked, monkeypatch):
    monkeypatch.setitem(ROWS, "known_1000", [ROWS["known_1000"][0] | {"known_id": i} for i in range(50)])
    one, again, other = (load_set("known_1000", 7, seed) for seed in (0, 0, 1))
    assert one == again != other and len(one) == len(other) == 7
    numbers = [int(case["id"].rpartition("-")[2]) for case in one]
    assert numbers == sorted(set(numbers))


def test_what_goes_wrong_is_a_sentence(asked, monkeypatch):
    with pytest.raises(ValueError, match="there is no set 'glue': name known_1000, ioi, squad_v2, or a file of cases"):
        load_set("glue")
    monkeypatch.setitem(ROWS, "ioi", [{"prompt": "a", "choices": []}])
    with pytest.raises(ValueError, match="the set 'ioi' has no column 'answerKey': it is not what it was"):
        load_set("ioi")

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", fail)
    with pytest.raises(OSError, match="the set 'ioi' cannot be loaded: ConnectionError: no network"):
        load_set("ioi")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="loaded with datasets: pip install datasets"):
        load_set("ioi")


def test_the_command_line_knows_them():
    assert set(options.SETS) == set(SETS)
