"""The search for stabilisers, and cases turned the way that the model decides."""

import numpy as np
import pytest

import lrp_fast
from lrp_fast import Rules
from lrp_fast.evaluate import METHODS, preferred, search
from lrp_fast.evaluate.methods import ByRule, named
from lrp_fast.study import read_cases

GRID = {"epsilon": (0.0, 3.0), "gamma": (0.0, 0.5)}


def made(ids, count=6):
    return read_cases([{"id": f"c{i}", "input_ids": ids[0, i:].tolist(), "contrast": ["top", 1]} for i in range(count)])


@pytest.fixture(scope="module")
def searching():
    import importlib

    return importlib.import_module("lrp_fast.evaluate.search")


def test_the_best_of_the_cases_held_out(tiny, ids, searching):
    model, cases = tiny("llama"), made(ids)
    found = search(model, cases, grid=GRID, share=0.5, seed=3)
    assert (len(found.held_out), len(found.rest)) == (3, 3)
    assert sorted(case.id for case in found.held_out + found.rest) == [case.id for case in cases]
    assert (found.held_out, found.rest) == searching.split(cases, 0.5, 3)
    means = {}
    for epsilon in GRID["epsilon"]:
        for gamma in GRID["gamma"]:
            rules = Rules(epsilon=epsilon, gamma=gamma)
            judged = lrp_fast.evaluate(model, found.held_out, {"it": ByRule(rules)}, ["flip"])
            means[searching.word_of(rules)] = np.mean([row.measures["flipped_at"] for row in judged.rows])
    assert {row["method"]: row["mean"] for row in found.table} == means
    assert [row["mean"] for row in found.table] == sorted(means.values())
    assert found.word == min(means, key=means.get) == searching.word_of(found.rules)
    assert named(found.word) == ByRule(found.rules) and found.measure == "flip, flipped_at"


def test_of_equal_ones_the_first_wins(tiny, ids):
    found = search(tiny("llama"), made(ids), grid={"epsilon": (0.0, 1e-30, 1e-31)})
    assert found.word == "attnlrp" and len(found.table) == 3


def test_higher_is_better_where_it_is(tiny, ids):
    found = search(tiny("llama"), made(ids), "cp", GRID, "contextcite", share=0.5)
    assert found.measure == "contextcite, lds" and found.rules.name == "cp"
    means = [row["mean"] for row in found.table]
    assert means == sorted(means, reverse=True) and means[0] > means[-1]


def test_it_is_judged_as_it_will_be(tiny, ids):
    model, cases = tiny("llama"), made(ids)
    found = search(model, cases, grid={"epsilon": (0.0,)}, share=0.5, units=5, replacement="mean")
    rules = {"it": ByRule(Rules())}
    judged = lrp_fast.evaluate(model, found.held_out, rules, ["flip"], units=5, replacement="mean")
    assert found.table[0]["mean"] == np.mean([row.measures["flipped_at"] for row in judged.rows])
    assert found.table[0]["mean"] <= 5


def test_what_cannot_be_held_out_is_refused(tiny, ids):
    for cases, share in ((made(ids, 1), 0.2), (made(ids), 1.0), (made(ids), 0)):
        with pytest.raises(ValueError, match="cannot be held out: give more cases, or 0.2"):
            search(tiny("llama"), cases, share=share)


def test_cases_that_cannot_be_judged_are_a_sentence(tiny, ids):
    model = tiny("llama")
    chosen = lrp_fast.attribute(model, ids).explained.terms[0].target.id
    case = {"input_ids": ids[0].tolist(), "target": (chosen + 1) % 97, "contrast": chosen}
    with pytest.raises(ValueError, match="none of the 1 cases held out could be judged: the model does not prefer"):
        search(model, [case | {"id": "a"}, case | {"id": "b"}])


def test_cases_are_turned_where_the_model_prefers_the_contrast(tiny, ids):
    model = tiny("llama")
    best, *_, worst = (token.id for token in lrp_fast.attribute(model, ids).explained.best)
    given = {"input_ids": ids[0].tolist(), "gold": [[0, 2]], "kind": "x"}
    cases = [
        given | {"id": "right", "target": best, "contrast": worst},
        given | {"id": "wrong", "target": worst, "contrast": best},
        given | {"id": "alone", "target": worst},
        given | {"id": "out", "target": 97, "contrast": best},
    ]
    found = preferred(model, cases)
    assert [case.id for case in found] == ["right", "wrong", "alone", "out"]
    right, wrong, alone, out = found
    assert [right, alone, out] == [read_cases(cases)[i] for i in (0, 2, 3)]
    assert (wrong.target, wrong.contrast, wrong.fields) == (best, worst, {"kind": "x", "turned": True})
    judged = lrp_fast.evaluate(model, [wrong], {"it": METHODS["attnlrp"]}, ["flip"])
    assert judged.rows[0].why is None and read_cases([wrong.as_line()]) == [wrong]
