"""Runs of the same cases, held against each other: every number by hand, and nothing left out without a word."""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from lrp_fast import GraphSpec, load, study
from lrp_fast.report.comparison import table as text
from lrp_fast.study import Case, Folder, compare, measures, runs
from lrp_fast.study import folder as folders
from lrp_fast.study.compared import summary, write
from lrp_fast.study.table import write_table

pandas = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

TOKEN = {"target": " x", "target_id": 5, "target_rank": 0, "runner_up": " y", "runner_up_id": 6, "runner_up_rank": 1}
CONTRAST = {"contrast": " y", "contrast_id": 6, "contrast_rank": 1}


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's, of what is not defined
        warnings.simplefilter("error", UserWarning)
        yield


def segment(name, relevance, magnitude):
    return {"name": name, "tokens": 1, "relevance": relevance, "magnitude": magnitude, "layers": [relevance]}


def done(value=1.0, prompt="p", segments=(), **more):
    """A case that a run has explained, as its table has it."""
    row = {"kind": "difference", "value": value, "num_tokens": 3, "positions": [2], "note": "", "dropped": 0.0}
    row |= dict.fromkeys(measures.NAMES, 0.5) | {"segments": list(segments)} | TOKEN | CONTRAST | more
    return prompt, row


def not_done(status, why="out of memory", prompt="p"):
    return prompt, (status, why)


@pytest.fixture
def few(monkeypatch):
    """Few figures, so that few plots are drawn."""
    monkeypatch.setattr(runs, "FIGURES", ("value", "early_late"))


@pytest.fixture
def made(tmp_path):
    """``made(name, {id: done(...) or not_done(...)})``: a run's folder with that table."""

    def call(name, given, finding=lambda value, segments: None, fields=None, **manifest):
        folder = Folder(tmp_path / name)
        folder.path.mkdir(parents=True)
        cases = [Case(id, prompt, fields=(fields or {}).get(id, {})) for id, (prompt, _) in given.items()]
        about = {"model": "tiny", "dtype": "float32", "rules": {"name": "attnlrp"}, "versions": {}} | manifest
        folders.begin(folder, about, folders.lines([case.as_line() for case in cases]))
        log, figures = [], {}
        for id, (_, row) in given.items():
            if isinstance(row, dict):
                log.append({"id": id, "status": "done", "why": None, "seconds": 0.0})
                figures[id] = row
            else:
                log.append({"id": id, "status": row[0], "why": row[1], "seconds": 0.0})
        folders.append(folder, log)
        write_table(folder, cases, finding, figures)
        return folder.path

    return call


def rows(table, *columns):
    found = table[list(columns)].astype(object).where(table[list(columns)].notna(), None)
    return list(found.itertuples(index=False, name=None))


def test_what_is_in_one_run_alone_or_failed_is_counted_and_named(made):
    a = made("a", {"1": done(), "2": done(), "3": not_done("failed"), "4": done(), "5": not_done("refused", "bad")})
    b = made("b", {"4": done(), "1": done(), "3": done(), "2": not_done("failed", "lost"), "5": not_done("failed"),
                   "6": done()})
    found = compare(a, b)
    assert found.cases.id.tolist() == ["1", "2", "3", "4", "5", "6"]
    assert found.cases["compared.b"].tolist() == [True, False, False, True, False, False]
    assert rows(found.left_out, "base", "run", "id", "what", "why") == [
        ("a", "b", "2", "failed in b", "b: lost"),
        ("a", "b", "3", "failed in a", "a: out of memory"),
        ("a", "b", "5", "refused in a, failed in b", "a: bad; b: out of memory"),
        ("a", "b", "6", "missing in a", "a has no such id"),
    ]
    flips = found.flips[found.flips.what == "status"]
    assert rows(flips, "id", "before", "after") == [
        ("2", "done", "failed"), ("3", "failed", "done"), ("5", "refused", "failed"),
    ]  # fmt: skip
    (pair,) = summary(found)["pairs"]
    assert pair["compared"] == 2 and pair["left_out"] == {
        "failed in b": ["2"], "failed in a": ["3"], "refused in a, failed in b": ["5"], "missing in a": ["6"],
    }  # fmt: skip
    assert pair["compared"] + sum(map(len, pair["left_out"].values())) == len(found.cases)


def test_an_id_of_another_prompt_is_another_case(made):
    a = made("a", {"1": done(), "2": done(prompt="one"), "3": done(prompt=[1, 2]), "4": not_done("failed")})
    b = made("b", {"1": done(), "2": done(prompt="two"), "3": done(prompt=[1, 3]), "4": done(prompt="q")})
    found = compare(a, b)
    assert found.cases["compared.b"].tolist() == [True, False, False, False] and found.flips.empty
    assert rows(found.left_out, "id", "what") == [(one, "another prompt") for one in "234"]
    assert found.left_out.why[0] == 'it asks "one" in a, and "two" in b'
    assert found.left_out.why[1].startswith("its token ids are others, as those of two tokenizers always are")


def test_cases_of_pairs_are_paired_by_what_was_asked(made):
    """Each model's own mistake is at another token, behind another beginning of an answer."""
    asked = {"1": {"asked": "how many"}, "2": {"asked": "which"}}
    a = made("a", {"1": done(prompt=[1, 2]), "2": done(prompt=[3])}, fields=asked)
    b = made("b", {"1": done(prompt=[7], target=" z"), "2": done(prompt=[3])}, fields=asked | {"2": {"asked": "who"}})
    found = compare(a, b)
    assert found.cases["compared.b"].tolist() == [True, False]
    assert found.cases["same_tokens.b"].tolist() == [False, False]
    assert summary(found)["pairs"][0]["other_tokens"] == 1
    assert "of 1 of them the tokens compared (target, contrast) are not the same" in text(summary(found))


def test_figures_are_those_of_the_pairs(made):
    x, y = [1.0, 2.0, 4.0, 3.0, 9.0], [1.5, 1.0, 5.0, 3.5, math.inf]
    a = made("a", {str(i): done(2.0, early_late=one, gini=0.1 * i) for i, one in enumerate(x)})
    b = made("b", {str(i): done(1.0, early_late=one, gini=0.1 * i) for i, one in reversed(list(enumerate(y)))})
    found = compare(a, b).figures.set_index("figure")
    row = found.loc["early_late"]
    assert (row.pairs, row.not_finite, row.base_mean, row.run_mean) == (4, 1, 2.5, 2.75)
    assert row.difference == 0.25 and row.low < 0.25 < row.high and pandas.isna(row.why)
    assert row.pearson == pytest.approx(np.corrcoef(x[:4], y[:4])[0, 1]) and row.spearman == pytest.approx(0.8)
    assert found.loc["gini"].pearson == pytest.approx(1.0) and found.loc["gini"].difference == 0
    row = found.loc["value"]
    assert row.why == "one side is constant, 2" and math.isnan(row.pearson)
    assert (row.difference, row.low, row.high) == (-1.0, -1.0, -1.0)
    assert "  no correlation of value: one side is constant, 2\n" in text(summary(compare(a, b)))


def test_what_flips(made):
    finding = {True: "both", False: None}
    given = {"finding": lambda value, segments: finding[value > 1]}
    a = made("a", {
        "s": done(0.5), "0": done(0.0), "f": done(2.0), "p": done(), "t": done(), "same": done(-1.0),
    }, **given)  # fmt: skip
    first = {"target_rank": 1, "runner_up_rank": 0}
    b = made("b", {
        "s": done(-0.25), "0": done(0.5), "f": done(0.5), "p": done(**first),
        "t": done(target=" q"), "same": done(-7.0),
    }, **given)  # fmt: skip
    found = compare(a, b).flips
    assert rows(found, "id", "what", "before", "after", "same_tokens") == [
        ("s", "sign", "0.5", "-0.25", True),
        ("0", "sign", "0", "0.5", True),
        ("f", "finding", "both", None, True),
        ("p", "preferred", " x", " y", True),
        ("t", "preferred", " x", " q", False),
    ]


def test_a_token_without_a_text_is_its_number(made):
    none = {"target": None, "contrast": None, "runner_up": None}
    a, b = made("a", {"1": done(**none)}), made("b", {"1": done(**none, target_id=9)})
    row = compare(a, b).cases.iloc[0]
    assert (row["preferred.a"], row["preferred.b"], row["same_tokens.b"]) == ("token 5", "token 9", False)


def test_segments_are_means_over_the_cases_that_have_them(made):
    parts = [("instruction", 1.0, 1.0), ("(rest)", 2.0, 3.0)]
    one = done(segments=[segment(*part) for part in parts])
    two = done(segments=[segment("instruction", 3.0, 3.0), segment("(rest)", -1.0, 1.0)])
    zero = done(segments=[segment("(rest)", 0.0, 0.0)])
    half = done(segments=[segment("instruction", 0.5, 1.0), segment("other", 1.0, 1.0)])
    a = made("a", {"1": one, "2": two, "3": zero, "4": one})
    b = made("b", {"1": half, "2": half, "3": zero, "4": not_done("failed")})
    found = compare(a, b, seed=3)
    means = found.segments.set_index(["run", "segment"])
    row = means.loc["a", "instruction"]
    assert (row.cases, row.relevance, row.share) == (2, 2.0, 0.5)  # 1/4 and 3/4; the fourth case is not in both
    assert (row.relevance_low, row.relevance_high) == (1.0, 3.0)  # of two numbers, one of four draws is all the first
    row = means.loc["a", "(rest)"]
    assert (row.cases, row.relevance) == (3, pytest.approx(1 / 3)) and row.share == 0.5  # where there is any
    assert means.loc["b", "other"].cases == 2 and ("a", "other") not in means.index
    apart = found.segment_differences.set_index("segment")
    assert list(apart.index) == ["instruction", "(rest)"]
    row = apart.loc["instruction"]
    assert (row.pairs, row.difference, row.share_difference) == (2, -1.5, 0.0) and row.low < -1.5 < row.high
    assert math.isnan(apart.loc["(rest)"].low) and apart.loc["(rest)"].pairs == 1
    assert math.isnan(apart.loc["(rest)"].share_difference)
    assert compare(a, b, seed=3).segments.equals(found.segments)


def test_three_runs_are_each_compared_with_the_first_and_share_what_all_have(made):
    a = made("a", {"1": done(1.0), "2": done(2.0), "3": done(3.0)})
    b = made("x/run", {"1": done(-1.0), "2": done(-2.0)})
    c = made("y/run", {"2": done(5.0), "3": done(6.0)})
    found = compare(a, b, c)
    assert [run.name for run in found.runs] == ["a", "x/run", "y/run"]
    assert found.cases.shared.tolist() == [False, True, False]
    assert found.cases["compared.x/run"].tolist() == [True, True, False]
    told = summary(found)
    assert told["shared"] == 1 and [one["compared"] for one in told["pairs"]] == [2, 2]
    assert told["pairs"][1]["left_out"] == {"missing in y/run": ["1"]}
    assert "1 case compared in all of them" in text(told)


def test_runs_that_share_no_case(made):
    a = made("a", {"1": done(), "2": not_done("failed"), "3": done(prompt="p")})
    b = made("b", {"2": done(), "3": done(prompt="q"), "4": done()})
    with pytest.raises(ValueError) as caught:
        compare(a, b)
    assert str(caught.value) == (
        "'a' has no case in common with another run that both have explained: 1 missing in b, 1 failed in a, "
        "1 another prompt, 1 missing in a"
    )


def test_files_are_whole_and_alike_each_time(few, made, tmp_path):
    parts = [segment("instruction <1>", 1.0, 1.0), segment("(rest)", 2.0, 3.0)]
    given = {f"case {i} \u2603": done(i / 7, early_late=math.inf if i == 4 else 1.0, segments=parts) for i in range(9)}
    a, b = made("a", given), made("b", given | {"case 8 \u2603": not_done("failed", "no, \"room\"\nleft")})
    names = write(compare(a, b), tmp_path / "out")
    assert sorted(names) == sorted(one.name for one in (tmp_path / "out").iterdir())
    assert {"ecdf-value.svg", "scatter-value-2.svg", "segments.svg", "summary.json"} < set(names)
    told = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert told["pairs"][0]["figures"]["early_late"]["not_finite"] == 1
    assert told["pairs"][0]["figures"]["early_late"]["pearson"] is None
    for name, table in compare(a, b).tables().items():
        kept = pandas.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert kept.shape == table.shape and list(kept) == list(table)
        assert pandas.read_csv(tmp_path / "out" / f"{name}.csv").shape == table.shape
    before = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    compare(a, b).write(tmp_path / "out")
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == before


def test_a_folder_holds_one_comparison(few, made, tmp_path):
    a, b, c = (made(name, {"1": done(segments=[segment("s", 1.0, 1.0)])}) for name in "abc")
    write(compare(a, b, c), tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    names = write(compare(a, b), tmp_path / "out")
    assert {one.name for one in (tmp_path / "out").iterdir()} == {*names, "mine.txt"}
    assert "scatter-value-3.svg" not in names
    with pytest.raises(ValueError, match="holds other things than a comparison: name a new one"):
        write(compare(a, b), a)
    with pytest.raises(ValueError, match="is no folder: name a new one"):
        write(compare(a, b), tmp_path / "out" / "mine.txt")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["a"], ValueError, "compare takes two runs at least"),
        (["a", "a"], ValueError, "the folder 'a' is given twice"),
        (["a", "nowhere"], FileNotFoundError, "is no study's folder: it has no manifest.json"),
        (["a", "begun"], FileNotFoundError, "begun' has no table yet: the command that began it goes on"),
    ],
)
def test_what_is_no_run_is_refused(given, error, message, made, tmp_path):
    for name in ("a", "begun"):
        made(name, {"1": done()})
    (tmp_path / "begun" / "cases.parquet").unlink()
    with pytest.raises(error) as caught:
        compare(*(tmp_path / one for one in given))
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_is_a_whole_number(seed, made):
    with pytest.raises(ValueError, match="seed must be a whole number, 0 or more"):
        compare(made("a", {"1": done()}), made("b", {"1": done()}), seed=seed)


def test_graphs_that_one_run_has_are_no_figure_of_both(few, made, tmp_path):
    graph = {"layer": [0.0, 1.0], "nodes": [3.0, 5.0]}
    a, b = (made(name, {str(i): done(i) for i in range(2)}) for name in "ab")
    c, d = (made(name, {"0": done(0.0, graph=graph), "1": done(1.0)}) for name in "cd")
    assert set(compare(a, c).figures.figure) == {"value", "early_late"}
    found = compare(c, d, b)
    nodes = found.figures[found.figures.figure == "graph.nodes"]
    assert rows(nodes, "run", "pairs", "not_finite", "base_mean") == [("d", 1, 1, 4.0)]
    assert {"ecdf-graph.nodes.svg", "scatter-graph.nodes-2.svg"} < set(write(found, tmp_path / "out"))


def test_two_checkpoints_of_a_model(model, tokenizer, cases, tmp_path):
    """From the runs' own files: each value is that of its result, a graph's measures are the means over its layers."""
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(-1)
    given = cases(8)
    study.run(model, given, tmp_path / "a", tokenizer=tokenizer, graph=GraphSpec(topk=2))
    study.run(other, given[:7], tmp_path / "b", tokenizer=tokenizer, graph=GraphSpec(topk=2))
    found = compare(tmp_path / "a", tmp_path / "b")
    told = summary(found)
    assert told["pairs"][0]["compared"] == 5 and told["differ"] == ["fingerprint"]
    assert told["pairs"][0]["left_out"] == {
        "refused in a, refused in b": ["malformed", "case 3"], "missing in b": ["case 7"],
    }  # fmt: skip
    row = found.cases.set_index("id").loc["case 1"]
    for name in "ab":
        result = load(Folder(tmp_path / name).result("case 1"))
        assert row[f"value.{name}"] == result.value
        assert row[f"preferred.{name}"] == result.explained.best[0].text
    assert row["value.b"] == pytest.approx(-row["value.a"], rel=1e-4)
    assert set(found.flips[found.flips.what == "sign"].id) == set(found.cases.id[found.cases["compared.b"]])
    graph = study.table(tmp_path / "a").set_index("id").graph["case 1"]
    assert row["graph.node_gini.a"] == pytest.approx(np.mean(graph["node_gini"]))
    row = found.figures.set_index("figure").loc["graph.node_gini"]
    assert row.pairs == 5 and row.pearson == pytest.approx(1.0)
