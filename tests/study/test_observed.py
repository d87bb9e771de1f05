"""What observers saw of a case is what they see of `attribute`, in the table, in a file, and after a kill."""

import math

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, attribute, study
from lrp_fast.observers import Heads, LogitLens, Neurons, Steps
from lrp_fast.study import Folder, observed, passes

EVERY = {"heads": 3, "neurons": 4, "lens": True, "steps": True}


@pytest.fixture
def run(model, tokenizer, cases, tmp_path):
    """``run(name, ...)``: six cases into that folder, of which one has two segments."""

    def call(name="run", observe=EVERY, **given):
        asked = cases(6)
        asked[1]["segments"] = {"one": [0, 2], "two": [[2, 4], [5, 6]]}
        return study.run(model, asked, tmp_path / name, tokenizer=tokenizer, observe=observe, **given)

    return call


def test_they_are_those_of_attribute(run, model, tokenizer, cases, tmp_path):
    assert run(graph=GraphSpec(topk=2)) == {"done": 4, "failed": 0, "refused": 2}
    folder = Folder(tmp_path / "run")
    assert {len(unit["ids"]) for unit in folder.manifest()["packs"]} == {1}
    steps = Steps([range(2), [2, 3, 5]])
    watching = [Heads(), Neurons(k=4), LogitLens(), steps]
    given = (model, cases(6)[1]["prompt"], "sydney", "canberra")
    truth = attribute(*given, tokenizer=tokenizer, observe=watching, graph=GraphSpec(topk=2))
    kept = observed.load(folder.observed("case 1"))
    assert kept.steps == ["one", "two"] and list(kept.tables) == ["heads", "neurons", "lens", "steps"]
    for mine, own in zip(kept.tables.values(), truth.observed, strict=True):
        assert type(mine) is type(own)
        for a, b in zip(mine, own, strict=True):
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    assert torch.equal(lrp_fast.load(folder.result("case 1")).layers, truth.layers)

    row = study.table(folder).set_index("id").loc["case 1"]
    heads, neurons, lens, moves = truth.observed
    strongest = [heads.output[one["layer"], one["head"]].item() for one in row.heads]
    assert [abs(one) for one in strongest] == heads.output.abs().flatten().sort(descending=True).values[:3].tolist()
    assert [one["output"] for one in row.heads] == strongest
    best = neurons.relevance.abs().sort(descending=True).values[:4].tolist()
    assert [abs(one["relevance"]) for one in row.neurons] == best
    assert row.commitment == lens.commitment[-1] and row["lens"].tolist() == lens.scores[:, -1].tolist()
    assert row["lens"][-1] == pytest.approx(row.value, rel=1e-4)
    one, two = row.steps
    assert (one["name"], two["name"]) == ("one", "two") and one["moved"] is None
    assert two["relevance"].tolist() == moves.relevance[:, 1].tolist()
    a, b = moves.hidden[2].double()
    assert two["length"][2] == pytest.approx(b.norm().item())
    assert two["moved"][2] == pytest.approx(2 * (a - b).norm().item() / (a.norm() + b.norm()).item())
    assert study.table(folder).set_index("id").steps["case 0"] is None or not len(
        study.table(folder).set_index("id").steps["case 0"]
    )


def test_the_table_from_the_files_is_that_of_the_run(run, content, tmp_path, monkeypatch):
    run()
    before = content(tmp_path / "run")
    assert sum(name.startswith("observed") for name in before) == 4
    (tmp_path / "run" / "cases.parquet").unlink()
    monkeypatch.setattr(passes, "explain", None)
    run()
    assert content(tmp_path / "run") == before


def test_what_was_lost_is_made_again(run, content, tmp_path):
    run()
    before = content(tmp_path / "run")
    Folder(tmp_path / "run").observed("case 4").unlink()
    run()
    assert content(tmp_path / "run") == before


def test_they_are_paid_for_only_where_asked_for(run, tmp_path):
    run(observe=())
    assert not {*EVERY, "commitment"} & set(study.table(tmp_path / "run").columns)
    assert not any((tmp_path / "run" / "observed").iterdir())
    with pytest.raises(ValueError, match="was begun with the observers none, and this is lens True"):
        run(observe=["lens"])
    run("other", observe=["lens"])
    assert {"commitment", "lens"} <= set(study.table(tmp_path / "other").columns)


def test_a_case_that_an_observer_refuses_is_a_row(run, model, tmp_path):
    cases = [{"id": "a", "input_ids": [2, 3], "target": ["logprob", 5]}, {"id": "b", "input_ids": [2, 3], "target": 5}]
    assert study.run(model, cases, tmp_path / "run", observe=["lens"]) == {"done": 1, "failed": 1, "refused": 0}
    table = study.table(tmp_path / "run").set_index("id")
    assert table.why["a"].startswith("LogitLens scores logits and their differences, and a log-probability")
    assert math.isnan(table.commitment["a"]) and table.commitment["b"] >= 0


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ("lens", "observe must be a list of heads, neurons, lens, steps"),
        (["scans"], "observe holds 'scans', and a study knows heads, neurons, lens, steps"),
        ({"heads": 0}, "observe gives 0 for 'heads', which must be True, or how many of the strongest"),
        ({"lens": 3}, "observe gives 3 for 'lens', which must be True"),
    ],
)
def test_what_no_case_could_be_observed_with(observe, message, run, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        run(observe=observe)
    assert not (tmp_path / "run").exists()


def test_a_model_without_heads_is_refused_before_anything_runs(tiny, tmp_path):
    with pytest.raises(ValueError, match="layer 0: .*: name other layers=, or leave the observer Neurons out"):
        study.run(tiny("mixtral"), [{"input_ids": [1, 2]}], tmp_path / "run", observe=["neurons"])
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_none_of_these_says_so(run, tmp_path):
    run()
    folder = Folder(tmp_path / "run")
    with pytest.raises(ValueError, match="is not a whole file of what a study observed: it is an attribution"):
        observed.load(folder.result("case 1"))
    with pytest.raises(FileNotFoundError, match="no observation at"):
        observed.load(folder.observed("case 9"))
