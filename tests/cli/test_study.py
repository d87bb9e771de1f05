"""lrp-fast study: cases into a folder, prompts into cases."""

import importlib
import io
import json
import pickle
import sys
from types import SimpleNamespace

import pytest

import lrp_fast
from lrp_fast.cli import main

pytest.importorskip("pyarrow")

CASES = [
    {"id": "a", "prompt": "the capital of australia is", "target": "sydney", "contrast": "canberra"},
    {"id": "b", "prompt": "the capital of new zealand is", "segments": {"country": "new zealand"}},
    "no JSON",
]


@pytest.fixture
def study(directory, tmp_path, monkeypatch, capsys):
    """``study(part, lines, *options)``: exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(part, lines, *options):
        file = tmp_path / "given.jsonl"
        file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
        capsys.readouterr()
        try:
            status = main(["study", part, directory, "given.jsonl", *options])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def test_a_run_and_the_same_again(study, tmp_path):
    status, out, err = study("run", CASES, "--out", "run", "--topk", "2")
    assert (status, out) == (0, "2 done, 0 failed, 1 refused, of 3 cases\n")
    assert err.count("line 3: it is no JSON in UTF-8") == err.count("line 3") == 1
    assert err.endswith("wrote run/cases.parquet\n")
    folder = lrp_fast.study.Folder(tmp_path / "run")
    result = lrp_fast.load(folder.result("b"))
    assert result.sources.names == ["country", "(rest)"] and lrp_fast.Graph.load(folder.graph("a")).num_layers == 3
    command = folder.manifest()["command"]
    assert command[:3] == ["lrp-fast", "study", "run"] and command[4:] == ["given.jsonl", "--out", "run", "--topk", "2"]
    status, out, err = study("run", CASES, "--out", "run", "--topk", "2", "--json")
    assert (status, json.loads(out)) == (0, {"done": 2, "failed": 0, "refused": 1})
    assert "3 cases had been finished before" in err


def test_another_rule_is_refused_and_costs_nothing(study):
    assert study("run", CASES, "--out", "run")[0] == 0
    status, out, err = study("run", CASES, "--out", "run", "--rule", "cp")
    assert (status, out) == (2, "") and "was begun with the rule name attnlrp, and this is name cp" in err


def test_where_no_case_could_be_explained_the_status_is_1(study):
    status, out, err = study("run", ["no JSON"], "--out", "run")
    assert (status, out) == (1, "0 done, 0 failed, 1 refused, of 1 cases\n")


def test_an_interrupted_run_says_that_it_goes_on(study, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lrp_fast.study.passes.explain_pack", interrupted)
        status, out, err = study("run", CASES, "--out", "run")
    assert (status, out) == (130, "")
    assert "1 of 3 cases are finished: the same command goes on from there\nlrp-fast: interrupted" in err
    assert study("run", CASES, "--out", "run")[0] == 0


def test_the_bar_says_how_fast_and_what_is_left(monkeypatch):
    """What had been finished before counts for neither; what is left goes by tokens."""
    commands, clock = importlib.import_module("lrp_fast.cli.study"), iter([5.0, 15.0])
    monkeypatch.setattr(commands, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    (terminal := io.StringIO()).isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with commands.watched_cases(60) as bar:
        bar(10, 0.25)
        bar(30, 0.75)
    assert "\r10 of 60 cases:  25% |" in terminal.getvalue()
    assert "\r30 of 60 cases, 2 a second, 00:05 left:  75% |" in terminal.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "run", "--layers", "1"], "are of a graph: give --topk or --mass too"),
        ([], "the following arguments are required: --out"),
        (["--out", "run", "--workers", "2"], "--workers are Ray's: give --ray too"),
        (["--out", "given.jsonl"], "'given.jsonl' is no folder, or lies in none: name a new one"),
        (["--out", "given.jsonl/run"], "given.jsonl/run' is no folder, or lies in none: name a new one"),
    ],
)
def test_what_is_asked_wrongly(options, message, study):
    status, out, err = study("run", CASES, *options)
    assert (status, out) == (2, "") and message in err


def test_no_control_character_of_an_id_reaches_the_terminal(study):
    status, out, err = study("run", [{"id": "a\n\x1b[31mb", "prompt": 3}], "--out", "run")
    assert status == 1 and "a\\n\\x1b[31mb: line 1: prompt must be" in err


def test_a_file_that_is_not_there(study, directory, capsys):
    assert main(["study", "run", directory, "absent.jsonl", "--out", "run"]) == 2
    assert "cannot read the cases: " in capsys.readouterr().err


def test_pairs_become_cases_of_a_run(study, tmp_path):
    prompts = [
        {"id": "given", "prompt": "the capital of australia is", "wrong": "sydney", "answer": "canberra"},
        {"id": "written", "prompt": "the capital of australia is", "pattern": "zealand"},
        {"id": "nothing", "prompt": "the"},
    ]
    status, out, err = study("pairs", prompts, "--out", "cases.jsonl", "--bound=-100", "--max-new-tokens", "4")
    assert status == 0 and out.endswith(", of 3 prompts\n") and "1 given" in out
    assert "nothing: nothing says what a right answer is" in err
    found = lrp_fast.study.read_cases(tmp_path / "cases.jsonl")
    assert [case.id for case in found] == ["given", "written", "nothing"]
    status, out, err = study("run", (tmp_path / "cases.jsonl").read_text("utf-8").splitlines(), "--out", "run")
    assert status == 0 and "refused, of 3 cases" in out


def test_pairs_do_not_take_the_place_of_their_prompts(study, tmp_path):
    prompts = [{"id": "a", "prompt": "the capital of australia is", "wrong": "sydney", "answer": "canberra"}]
    status, out, err = study("pairs", prompts, "--out", f"../{tmp_path.name}/given.jsonl")
    assert (status, out) == (2, "") and "is the file of prompts itself, which would be lost: name another" in err
    assert lrp_fast.study.read_cases(tmp_path / "given.jsonl")[0].fields["wrong"] == "sydney"
    assert "target" not in (tmp_path / "given.jsonl").read_text("utf-8")


def test_pairs_that_were_interrupted_go_on(study, tmp_path, monkeypatch):
    prompts = [{"id": one, "prompt": f"the capital of {one} is", "pattern": "^sydney"} for one in ("australia", "new")]
    options = ("--out", "cases.jsonl", "--bound=-100", "--max-new-tokens", "4", "--batch", "1")
    assert study("pairs", prompts, *options)[0] == 0
    whole = (tmp_path / "cases.jsonl").read_bytes()
    module = importlib.import_module("lrp_fast.study.pairs")
    walked, plain = [], module._pair

    def interrupted(case, *given):
        walked.append(case.id)
        if walked == ["australia", "new"]:
            raise KeyboardInterrupt
        return plain(case, *given)

    monkeypatch.setattr(module, "_pair", interrupted)
    (tmp_path / "cases.jsonl").unlink()
    status, out, err = study("pairs", prompts, *options)
    assert (status, out) == (130, "") and "what was found stands in cases.jsonl.unfinished: the same command" in err
    assert not (tmp_path / "cases.jsonl").exists()
    status, out, err = study("pairs", prompts, *options[:-4], "--max-new-tokens", "3")
    assert (status, out) == (2, "") and "begun with another model, other prompts or other options" in err
    assert study("pairs", prompts, *options)[0] == 0 and walked == ["australia", "new", "new"]
    assert (tmp_path / "cases.jsonl").read_bytes() == whole and not (tmp_path / "cases.jsonl.unfinished").exists()


def test_what_observers_see_goes_into_the_table(study, tmp_path):
    assert study("run", CASES, "--out", "run", "--heads", "2", "--neurons", "--lens", "--steps")[0] == 0
    manifest = lrp_fast.study.Folder(tmp_path / "run").manifest()
    assert manifest["observe"] == {"heads": 2, "neurons": 10, "lens": True, "steps": True}
    table = lrp_fast.study.table(tmp_path / "run").set_index("id")
    assert len(table.heads["a"]) == 2 and len(table.neurons["b"]) == 10 and table.commitment["a"] >= 0
    assert [one["name"] for one in table.steps["b"]] == ["country"]


def test_ray_is_asked_for_workers_that_load_the_same(study, directory, tmp_path, monkeypatch):
    """Which compute here in place of a Ray."""
    from lrp_fast.study import cluster

    asked = []

    def finish(self, how, packs, weights):
        explainer = cluster.Explainer(pickle.loads(pickle.dumps(self.model)), rule=how.rules)
        asked.append(self)
        for cases in packs:
            import pyarrow

            found = pyarrow.table(explainer({"case": list(map(cluster._text, cases))}))
            yield from ((packs.index(cases), *rest) for _, *rest in cluster._whole([found], [cases], weights))

    monkeypatch.setattr(cluster.Ray, "finish", finish)
    monkeypatch.setattr(cluster.Ray, "check", lambda self: None)
    assert study("run", CASES, "--out", "run", "--ray", "auto", "--workers", "2")[0] == 0
    assert study("run", CASES, "--out", "here")[0] == 0
    (one,) = asked
    assert (one.address, one.workers, one.num_gpus) == ("auto", 2, 0)
    for id in ("a", "b"):
        here, there = (lrp_fast.study.Folder(tmp_path / name).result(id).read_bytes() for name in ("here", "run"))
        assert here == there


def test_without_pyarrow_it_is_said_before_a_model_is_loaded(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, out, err = study("run", CASES, "--out", "run")
    assert (status, out) == (2, "") and err.startswith("lrp-fast: a study's table is written with pyarrow: pip install")


@pytest.fixture
def compare(study, capsys):
    """``compare(*arguments)``: of the runs "run" and "cp", exit status, stdout and stderr."""
    pytest.importorskip("matplotlib")
    for name, cases, rule in (("run", CASES, "attnlrp"), ("cp", CASES[:1], "cp")):
        assert study("run", cases, "--out", name, "--rule", rule)[0] == 0

    def call(*arguments):
        capsys.readouterr()
        return main(["study", "compare", *arguments]), *capsys.readouterr()

    return call


def test_two_rules_are_compared(compare, tmp_path):
    status, out, err = compare("run", "cp", "--out", "compared")
    assert status == 0 and "they differ in rules, cases" not in out and "they differ in rules\n" in out
    assert "cp against run: 1 case compared\n  2 not compared:\n    missing in cp: 1 (b)\n" in out
    assert "    refused in run, missing in cp: 1 (line 3)\n" in out
    assert "  no correlation of any figure: there are fewer than 3 pairs\n" in out
    files = sorted(one.name for one in (tmp_path / "compared").iterdir())
    assert err == f"wrote {len(files)} files to compared\n" and "ecdf-entropy.svg" in files
    status, out, err = compare("run", "cp", "--out", "compared", "--json", "--seed", "4")
    told = json.loads(out, parse_constant=pytest.fail)
    assert status == 0 and told["seed"] == 4 and told["pairs"][0]["compared"] == 1
    assert told["runs"][1]["rules"]["name"] == "cp" and told["differ"] == ["rules"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--out", "compared"], "compare takes two runs at least"),
        (["run", "nowhere", "--out", "compared"], "'nowhere' is no study's folder: it has no manifest.json"),
        (["run", "cp", "--out", "run"], "the folder 'run' holds other things than a comparison: name a new one"),
        (["run", "cp", "--out", "compared", "--seed", "-1"], "seed must be a whole number, 0 or more, not -1"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message, compare, tmp_path):
    status, out, err = compare(*arguments)
    assert (status, out) == (2, "") and message in err and not (tmp_path / "compared").exists()


def test_without_matplotlib_it_is_said_first(compare, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = compare("run", "cp", "--out", "compared")
    assert (status, out) == (2, "") and "a study's plots are drawn with matplotlib: pip install" in err
    assert not (tmp_path / "compared").exists()


def test_pages_of_a_run_and_of_one_compared_with_it(compare, capsys, tmp_path):
    capsys.readouterr()
    assert main(["study", "page", "run"]) == 0
    assert capsys.readouterr() == ("run/pages/index.html\n", "")
    assert len(list((tmp_path / "run" / "pages" / "cases").iterdir())) == 2
    assert main(["study", "page", "run", "--compare", "cp", "--out", "pages"]) == 0
    assert capsys.readouterr().out == "pages/index.html\n"
    assert (tmp_path / "pages" / "comparison.html").is_file()
    assert len(list((tmp_path / "pages" / "runs").glob("*/index.html"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is no study's folder: it has no manifest.json"),
        (["run", "--out", "cp"], "the folder 'cp' holds other things, 'cases.jsonl': name a new one"),
        (["run", "--compare", "run"], "'run' is given twice"),
        (["run", "--compare", "cp", "--seed", "-1"], "seed must be a whole number, 0 or more, not -1"),
        (["run", "--seed", "-1"], "seed must be a whole number, 0 or more, not -1"),
    ],
)
def test_pages_that_cannot_be_made_are_refused(arguments, message, compare, capsys, tmp_path):
    capsys.readouterr()
    assert main(["study", "page", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and not (tmp_path / "run" / "pages").exists()
