"""An evaluation into a folder: what it finds, and how it goes on."""

import json
from functools import partial

import pytest
import torch

import lrp_fast
from lrp_fast.evaluate import METHODS, PROTOCOLS, Scores, load, run
from lrp_fast.evaluate.methods import Random
from lrp_fast.study import read_cases

ASKED = (["random", "position", "attnlrp"], ["flip", "recovery"])


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("llama")


@pytest.fixture
def cases(ids):
    gold = [[2, 4]]
    found = [
        {"id": f"c{i}", "input_ids": ids[0, i:].tolist(), "contrast": ["top", 1], "gold": gold} for i in range(3)
    ]
    return read_cases([*found, {"id": "bad", "input_ids": [1, 200]}])


def same(one, other):
    told = [(row.case, row.method, row.protocol, row.measures, row.curves, row.why) for row in one.rows]
    return told == [(row.case, row.method, row.protocol, row.measures, row.curves, row.why) for row in other.rows]


def test_it_finds_what_evaluate_finds(model, cases, tmp_path):
    seen = []
    found = run(model, cases, *ASKED, tmp_path / "a", progress=lambda *now: seen.append(now))
    whole = lrp_fast.evaluate(model, cases, *ASKED)
    assert same(found, whole) and found.about == whole.about and found.better == whole.better
    assert seen == [(i, 4) for i in range(5)]
    assert same(load(tmp_path / "a" / "evaluation.json"), found)
    lines = [json.loads(line) for line in (tmp_path / "a" / "rows.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == ["c0", "c1", "c2", "bad"] and len(lines[0]["rows"]) == 6


def test_it_goes_on_where_it_was(model, cases, tmp_path, monkeypatch):
    whole = run(model, cases, *ASKED, tmp_path / "whole")
    folder, called = tmp_path / "a", []

    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, cases, *ASKED, folder, progress=stop)
    path = folder / "rows.jsonl"
    kept = path.read_bytes()
    assert kept.count(b"\n") == 2 and not (folder / "evaluation.json").exists()
    path.write_bytes(kept + b'{"case": "c2", "ro')  # killed while it wrote
    own = Random.__call__
    monkeypatch.setattr(Random, "__call__", lambda *given: called.append(1) or own(*given))
    assert same(run(model, cases, *ASKED, folder), whole)
    assert len(called) == 1 and path.read_bytes().startswith(kept)
    assert same(run(model, cases, *ASKED, folder), whole) and len(called) == 1


def test_functions_and_scores_of_files_go_on_too(model, cases, tmp_path):
    def asked(change=0.0):
        scores = {case.id: torch.arange(len(case.prompt)).double() + change for case in cases}
        return {"mine": lambda model, ids, question: ids.double(), "file": Scores("a.json", scores)}, ["recovery"]

    found = run(model, cases, *asked(), tmp_path / "a")
    assert same(run(model, cases, *asked(), tmp_path / "a"), found)
    with pytest.raises(ValueError, match="another value of methods"):
        run(model, cases, *asked(1.0), tmp_path / "a")


def test_another_evaluation_is_refused(model, tiny, cases, tmp_path):
    folder = tmp_path / "a"
    run(model, cases, *ASKED, folder)
    for given, what in (
        ((tiny("llama", seed=1), cases, *ASKED), "another model"),
        ((model, cases[:2], *ASKED), "other cases"),
        ((model, cases, {"random": Random(1)}, ASKED[1]), "another value of methods"),
        ((model, cases, ASKED[0], ["flip"]), "another value of protocols"),
    ):
        with pytest.raises(ValueError, match=f"was begun with {what}: name another folder"):
            run(*given, folder)
    with pytest.raises(ValueError, match="begun with another value of seed"):
        run(model, cases, *ASKED, folder, seed=1)
    one, other = (
        {"recovery": PROTOCOLS["recovery"]._replace(run=partial(PROTOCOLS["recovery"].run, share=share))}
        for share in (0.1, 0.5)
    )
    run(model, cases, ASKED[0], one, tmp_path / "c")
    with pytest.raises(ValueError, match="begun with another value of protocols"):
        run(model, cases, ASKED[0], other, tmp_path / "c")
    other = tmp_path / "b"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other things, 'thesis.txt': name a new one"):
        run(model, cases, *ASKED, other)
    assert [one.name for one in other.iterdir()] == ["thesis.txt"]


def test_names_may_come_from_an_iterator(model, cases, tmp_path):
    found = run(model, iter(cases), iter(ASKED[0]), iter(ASKED[1]), tmp_path / "a")
    assert same(found, lrp_fast.evaluate(model, cases, *ASKED)) and found.about["methods"] == ASKED[0]


def test_rows_of_other_versions_are_not_gone_on_with(model, cases, tmp_path, monkeypatch):
    run(model, cases, *ASKED, tmp_path / "a")
    monkeypatch.setattr(lrp_fast, "__version__", "0.0.1")
    with pytest.raises(ValueError, match="was begun with another value of versions: name another folder"):
        run(model, cases, *ASKED, tmp_path / "a")


def test_a_file_in_the_way(model, cases, tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="is no folder, or lies in none: name a new one"):
        run(model, cases, *ASKED, tmp_path / "a")


def test_what_is_wrong_is_said_before_anything_is_written(model, cases, tmp_path):
    with pytest.raises(ValueError, match="there is no protocol 'flop'"):
        run(model, cases, ["random"], ["flop"], tmp_path / "a")
    with pytest.raises(ValueError, match="there is no method 'lime'"):
        run(model, cases, ["lime"], ["flip"], tmp_path / "a")
    with pytest.raises(ValueError, match="replacement must be one of"):
        run(model, cases, {"it": METHODS["random"]}, ["flip"], tmp_path / "a", replacement="noise")
    with pytest.raises(ValueError, match="give tokenizer="):
        run(model, cases, ["random"], ["flip"], tmp_path / "a", units="sentences")
    assert not (tmp_path / "a").exists()
