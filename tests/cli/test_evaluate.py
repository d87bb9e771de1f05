"""`lrp-fast evaluate`: what is printed and written is what `lrp_fast.evaluate` finds."""

import json
import sys
from types import SimpleNamespace

import pytest
import transformers

import lrp_fast
from lrp_fast.evaluate import METHODS, PROTOCOLS, REPLACEMENTS, load, plan, preferred
from lrp_fast.evaluate.methods import ByRule
from lrp_fast.evaluate.printed import table
from lrp_fast_cli import evaluate as options

CASES = [
    {"id": "a", "prompt": "the capital of australia is", "contrast": ["top", 1], "gold": ["australia"], "depth": 1.0,
     "length": 5},
    {"id": "b", "prompt": "the capital of new zealand is", "contrast": ["top", 1], "gold": ["new"], "depth": 0.0,
     "length": 6},
    {"id": "c", "prompt": "is sydney the capital of australia", "target": "canberra", "contrast": "sydney"},
    {"id": "d", "prompt": "is sydney the capital of australia", "target": "sydney", "contrast": "canberra"},
]  # fmt: skip
ASKED = ("--cases", "cases.jsonl", "--methods", "random", "attnlrp:gamma=0.1", "--protocols", "flip", "morf_lerf")


@pytest.fixture
def call(run, tmp_path):
    """``call(*arguments)``, of `CASES` in a file of the folder: exit status, stdout and stderr."""
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in CASES))

    def evaluate(*arguments):
        return run(*arguments, command="evaluate")

    return evaluate


@pytest.fixture
def made(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    return model, transformers.AutoTokenizer.from_pretrained(directory)


def judged(made, cases=CASES, **given):
    model, tokenizer = made
    methods = {"random": METHODS["random"], "attnlrp:gamma=0.1": ByRule(lrp_fast.Rules(gamma=0.1))}
    return lrp_fast.evaluate(model, cases, methods, ["flip", "morf_lerf"], tokenizer=tokenizer, **given)


def test_table_and_files(call, made, tmp_path):
    status, out, err = call(*ASKED, "--out", "judged")
    assert status == 0, err
    found = judged(made)
    assert out.rstrip("\n") == table(found) == (tmp_path / "judged" / "table.txt").read_text().rstrip("\n")
    assert "flip" in out and "attnlrp:gamma=0.1" in out and "the model does not prefer the target" in out
    kept = load(tmp_path / "judged" / "evaluation.json")
    assert [row.measures for row in kept.rows] == [row.measures for row in found.rows]
    assert (tmp_path / "judged" / "curves.svg").read_bytes().startswith(b"<?xml")
    assert not (tmp_path / "judged" / "needles.svg").exists()
    assert "wrote table.txt, evaluation.json, curves.svg in judged" in err
    assert call(*ASKED, "--out", "judged")[:2] == (0, out)  # nothing is left to do


def test_json(call, made):
    status, out, err = call(*ASKED, "--out", "judged", "--json", "--seed", "3", "--replacement", "mean")
    found = judged(made, seed=3, replacement="mean")
    told = json.loads(out)
    assert status == 0 and told["table"] == json.loads(json.dumps(found.table())) and told["about"] == found.about
    assert "not judged" in err


def test_units_and_needles(call, tmp_path):
    status, out, err = call(
        "--cases", "cases.jsonl", "--methods", "random", "--protocols", "recovery", "--out", "x", "--units", "2"
    )
    assert status == 0 and "units 2" in out, err
    assert (tmp_path / "x" / "needles.svg").exists() and not (tmp_path / "x" / "curves.svg").exists()


def test_turn(call, made):
    model, tokenizer = made
    status, out, err = call(*ASKED, "--out", "judged", "--turn", "--json")
    cases = preferred(model, CASES, tokenizer)
    assert sum("turned" in case.fields for case in cases) == 1 and "1 of 4 cases turned" in err
    assert status == 0 and json.loads(out)["table"] == json.loads(json.dumps(judged(made, cases=cases).table()))


def test_plan(call, made, tmp_path):
    model, tokenizer = made
    status, out, err = call(*ASKED, "--plan")
    found = plan(model, CASES, 2, ["flip", "morf_lerf"], tokenizer=tokenizer)
    assert status == 0, err
    for one in found:
        assert f"{one.tokens:,}" in out and one.protocol in out
    assert f"{sum(one.tokens for one in found):,}" in out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cases.jsonl"]
    _, out, _ = call(*ASKED, "--plan", "--json")
    assert json.loads(out) == [one._asdict() for one in found]


def test_search(call):
    status, out, err = call(*ASKED, "--out", "judged", "--turn", "--search", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["search"]["cases"] == 1 and len(told["search"]["table"]) == 9
    assert told["about"]["cases"] == 3 and told["search"]["method"] in told["about"]["methods"]
    assert f"{told['search']['method']} is best of 9 by flip, flipped_at" in err


def test_scores_from_a_file(call, tmp_path):
    scores = {case["id"]: list(range(len(case["prompt"].split()))) for case in CASES}
    (tmp_path / "mine.json").write_text(json.dumps(scores))
    asked = ("--cases", "cases.jsonl", "--protocols", "flip", "--json")
    status, out, err = call(*asked, "--methods", "mine.json", "position", "--out", "judged")
    assert status == 0, err
    means = {}
    for row in json.loads(out)["table"]:
        means.setdefault(row["measure"], {})[row["method"]] = row["mean"]
    assert len(means) == 3 and all(one["mine.json"] == one["position"] for one in means.values())
    status, _, err = call(*asked, "--methods", "gone.json", "--out", "other")
    assert status == 2 and "cannot read the scores" in err


def test_scores_of_a_question_the_other_way_round_are_refused(call, made, tmp_path):
    (turned,) = (case.id for case in preferred(made[0], CASES, made[1]) if "turned" in case.fields)
    scores = {case["id"]: list(range(len(case["prompt"].split()))) for case in CASES}
    (tmp_path / "mine.json").write_text(json.dumps(scores))
    asked = ("--cases", "cases.jsonl", "--protocols", "flip", "--methods", "mine.json", "--turn")
    status, out, err = call(*asked, "--out", "judged")
    assert (status, out) == (2, "") and f"--turn exchanges target and contrast of '{turned}', and mine.json" in err
    del scores[turned]
    (tmp_path / "mine.json").write_text(json.dumps(scores))
    assert call(*asked, "--out", "judged")[0] == 0


def test_two_files_of_one_name_are_refused(call, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.json").write_text("{}")
    status, out, err = call("--cases", "cases.jsonl", "--methods", "a/mine.json", "b/mine.json", "--out", "x")
    assert (status, out) == (2, "") and "two methods are called 'mine.json'" in err


def test_a_public_set(call, monkeypatch):
    class Rows(list):
        column_names = ("known_id", "prompt", "subject", "attribute")

    fact = {"known_id": 1, "prompt": "the capital of australia is", "subject": "australia", "attribute": "canberra"}
    rows = Rows([fact, fact | {"known_id": 2}, fact | {"known_id": 3}])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda **_: rows))
    asked = ("--cases", "known_1000", "--methods", "random", "--protocols", "recovery", "--json")
    status, out, err = call(*asked, "--limit", "2", "--out", "judged")
    assert status == 0 and json.loads(out)["about"]["cases"] == 2 and "loading the set known_1000" in err
    monkeypatch.setitem(sys.modules, "datasets", None)
    status, _, err = call(*asked, "--out", "judged")
    assert status == 2 and "pip install datasets" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", "cases.jsonl"), "--out says where rows and table go: give it, or --plan"),
        (("--cases", "none.jsonl", "--out", "x"), "cannot read the cases"),
        (("--cases", "cases.jsonl", "--out", "x", "--methods", "lime"), "there is no method 'lime'"),
        (("--cases", "cases.jsonl", "--out", "x", "--protocols", "flop"), "invalid choice: 'flop'"),
        (("--cases", "cases.jsonl", "--out", "x", "--units", "0"), "'0' is no unit: write tokens, sentences or"),
        (("--cases", "cases.jsonl", "--out", "x", "--replacement", "noise"), "invalid choice: 'noise'"),
    ],
)
def test_asked_wrongly(call, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "") and message in err


def test_nothing_could_be_judged(call, tmp_path):
    (tmp_path / "cases.jsonl").write_text(json.dumps(CASES[0] | {"target": "sydney", "contrast": "sydney"}) + "\n")
    status, out, _ = call("--cases", "cases.jsonl", "--methods", "random", "--out", "x")
    assert status == 1 and "never diverge" in out


def test_the_parser_knows_what_there_is():
    assert tuple(METHODS) == options.METHODS and tuple(PROTOCOLS) == options.PROTOCOLS
    assert tuple(REPLACEMENTS) == options.REPLACEMENTS
