"""Whole evaluations of a tiny model: rows, tables, failures, files, and what is run."""

import json
import math

import numpy as np
import pytest
import torch

import lrp_fast
from lrp_fast import Rules, attribute
from lrp_fast.evaluate import PROTOCOLS, Evaluation, Protocol, Row, Scene, load, perturb, plan, scores_from
from tests import encoders
from tests.evaluate.conftest import CONTRAST, TARGET, WORDS

FAST = ["morf_lerf", "agreement", "contextcite", "mas"]


def cases(count, **fields):
    generator = torch.Generator().manual_seed(4)
    prompts = torch.randint(4, len(WORDS), (count, 9), generator=generator).tolist()
    return [{"id": f"case {i}", "input_ids": one, "target": TARGET, "contrast": CONTRAST} | fields
            for i, one in enumerate(prompts)]  # fmt: skip


def gradient(model, input_ids, question):
    (request,) = question.requests
    return attribute(model, input_ids, request.target, request.contrast, rule="gradient").relevance


def by_position(model, input_ids, question):
    return torch.arange(len(input_ids)).float()


class OfRule:
    rules = Rules("cp")

    def __call__(self, model, input_ids, question):
        return attribute(model, input_ids, question.requests[0].target, rule=self.rules).relevance


METHODS = {"gradient": gradient, "position": by_position}


def test_there_is_a_row_for_each_case_method_and_protocol(model):
    seen = []
    found = lrp_fast.evaluate(model, cases(3), METHODS, FAST, progress=lambda done, of: seen.append((done, of)))
    keys = [(row.case, row.method, row.protocol) for row in found.rows]
    assert keys == [(f"case {i}", method, one) for i in range(3) for method in METHODS for one in FAST]
    assert all(row.why is None and row.measures for row in found.rows)
    assert seen == [(i, 6) for i in range(1, 7)]
    assert found.rows[0].curves["morf_curve"][0] == pytest.approx(found.rows[0].curves["lerf_curve"][0])


def test_a_method_is_handed_the_models_own_choice(model):
    asked = []

    def method(model, input_ids, question):
        asked.append((input_ids.tolist(), question.requests[0].target, question.requests[0].contrast))
        return by_position(model, input_ids, question)

    given = cases(2, target=None, contrast=["top", 2])
    found = lrp_fast.evaluate(model, given, {"method": method}, ["agreement"])
    assert [row.why for row in found.rows] == [None, None]
    for case, (ids, target, contrast) in zip(given, asked, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([case["input_ids"]])).logits[0, -1]
        assert ids == case["input_ids"] and target == int(logits.argmax()) and contrast == ("top", 2)


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({}, lambda logits: logits[TARGET] - logits[CONTRAST]),
        ({"contrast": None}, lambda logits: logits[TARGET]),
        ({"contrast": "mean"}, lambda logits: logits[TARGET] - logits.mean()),
        ({"contrast": None, "target": ["logprob", TARGET]}, lambda logits: logits.log_softmax(-1)[TARGET]),
        ({"contrast": ["top", 2]}, None),
    ],
)
def test_what_is_measured_is_what_attribute_explains(model, fields, value):
    """And of other prompts, the mean of the same other tokens."""
    found = []

    def method(scores, scene):
        keep = torch.ones(2, scene.units, dtype=torch.bool)
        keep[1, 2] = False
        found.extend(scene.read(keep, "left out").preference.tolist())
        return {}

    (case,) = cases(1, **fields)
    result = lrp_fast.evaluate(model, [case], {"position": by_position}, {"mine": method})
    assert result.rows[0].why is None
    contrast, target = case["contrast"], case["target"]
    contrast = tuple(contrast) if isinstance(contrast, list) else contrast
    target = tuple(target) if isinstance(target, list) else target
    explained = attribute(model, case["input_ids"], target, contrast)
    assert found[0] == pytest.approx(explained.value, abs=1e-5)  # which keeps the norms in float64
    ids = torch.tensor(case["input_ids"])
    with torch.no_grad():
        whole, less = (model(input_ids=one[None]).logits[0, -1] for one in (ids, torch.cat([ids[:2], ids[3:]])))
    if value is None:
        two = [one for one in whole.argsort(descending=True).tolist() if one != TARGET][:2]
        assert found[1] == pytest.approx(float(less[TARGET] - less[two].mean()), abs=1e-9)
    else:
        assert found[1] == pytest.approx(float(value(less)), abs=1e-9)


def test_what_goes_wrong_is_a_row_with_its_sentence(model):
    def broken(model, input_ids, question):
        if input_ids.tolist() == cases(3)[1]["input_ids"]:
            raise KeyError("of this one")
        return by_position(model, input_ids, question)

    def short(model, input_ids, question):
        return torch.ones(2)

    given = [*cases(3), {"id": "bad", "input_ids": [1], "prompt": "two"}, {"id": "far", "input_ids": [4, 99]}]
    given += [{"id": "place", "input_ids": [4, 5, 6], "target": 4, "position": 0}]
    given += [{"id": "twin", "input_ids": [4, 5, 6], "target": 4, "contrast": 4}]
    found = lrp_fast.evaluate(model, given, {"broken": broken, "short": short}, ["agreement", "recovery"])
    rows = {(row.case, row.method, row.protocol): row.why for row in found.rows}
    assert rows.pop(("case 1", "broken", None)) == "KeyError: 'of this one'"
    assert "shape (2,) for a prompt of 9 tokens" in rows["case 0", "short", None]
    assert "no gold spans" in rows.pop(("case 0", "broken", "recovery"))
    assert "give one of prompt" in rows.pop(("bad", None, None))
    assert "outside the vocabulary" in rows.pop(("far", None, None))
    assert "behind the last token" in rows.pop(("place", None, None))
    assert "never diverge" in rows.pop(("twin", None, None))
    assert rows.pop(("case 0", "broken", "agreement")) is None and rows.pop(("case 2", "broken", "agreement")) is None
    table = {(row["protocol"], row["measure"], row["method"]): row for row in found.table()}
    assert table["agreement", "spearman", "broken"]["n"] == 2
    assert table["agreement", "spearman", "broken"]["failed"] == 5


def test_a_table_says_means_intervals_and_which_is_best(model):
    found = lrp_fast.evaluate(model, cases(6), METHODS, ["morf_lerf", "contextcite"])
    values = {name: [row.measures["area"] for row in found.rows if row.method == name and "area" in row.measures]
              for name in METHODS}  # fmt: skip
    rows = {row["method"]: row for row in found.table() if row["measure"] == "area"}
    for name, row in rows.items():
        assert row["mean"] == pytest.approx(np.mean(values[name])) and row["n"] == 6 and row["failed"] == 0
        assert row["low"] <= row["mean"] <= row["high"] and row["better"] == "higher"
    best = max(rows, key=lambda name: rows[name]["mean"])
    (other,) = set(rows) - {best}
    assert rows[best]["best"] and rows[best]["p"] is None and not rows[other]["best"]
    paired = found.paired("morf_lerf", "area", other, best)
    differences = np.array(values[other]) - np.array(values[best])
    assert paired["mean"] == pytest.approx(differences.mean()) and paired["p"] == rows[other]["p"]
    signs = np.array(np.meshgrid(*[[1, -1]] * 6)).reshape(6, -1).T
    assert paired["p"] == np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    lower = [row for row in found.table() if row["measure"] == "morf"]
    assert min(lower, key=lambda row: row["mean"])["best"]
    with pytest.raises(ValueError, match="no 'area' of 'flip' for method 'gradient'"):
        found.paired("flip", "area", "gradient", "position")


def test_of_equally_good_methods_none_is_the_best():
    values = {"a": [0.1, 0.2, 0.3], "b": [0.3, 0.1, 0.2], "c": [0.4, 0.5, 0.6]}
    rows = [Row(str(i), name, "flip", {"share": one[i]}) for name, one in values.items() for i in range(3)]
    table = Evaluation(rows, {"flip": {"share": "lower"}}, {}).table()
    assert [row["best"] for row in table] == [False] * 3
    assert [row["p"] for row in table] == [None, 1.0, 0.25]


def told_of(values, way="lower"):
    """The table of one measure, by method, of values by method and case; None failed."""
    rows = [
        Row(str(i), name, "flip", {} if value is None else {"share": value}, why="no" if value is None else None)
        for name, one in values.items() for i, value in enumerate(one)
    ]  # fmt: skip
    return {row["method"]: row for row in Evaluation(rows, {"flip": {"share": way}}, {}).table()}


def test_the_best_is_so_over_the_cases_that_all_have():
    """Not a method that failed where it is hard for all."""
    easy = told_of({"a": [0.2, 0.3, None, None], "b": [0.1, 0.2, 0.8, 0.9]})
    assert (easy["a"]["mean"], easy["b"]["mean"]) == pytest.approx((0.25, 0.5))  # each over its own
    assert not easy["a"]["best"] and easy["b"]["best"] and easy["a"]["p"] == 0.5
    apart = told_of({"a": [0.2, None], "b": [None, 0.1]})
    assert [(row["best"], row["p"], row["n"]) for row in apart.values()] == [(False, None, 1)] * 2


def test_a_saved_evaluation_is_read_again(model, tmp_path):
    found = lrp_fast.evaluate(model, cases(2), {"same": lambda model, ids, asked: torch.ones(len(ids))}, FAST, seed=3)
    assert math.isnan(found.rows[1].measures["spearman"])
    found.save(tmp_path / "e.json")
    again = load(tmp_path / "e.json")
    assert again.about == found.about and again.better == found.better and again.about["seed"] == 3
    for one, other in zip(again.rows, found.rows, strict=True):
        assert (one.case, one.method, one.protocol, one.why) == (other.case, other.method, other.protocol, other.why)
        assert one.measures == pytest.approx(other.measures, nan_ok=True) and one.curves == other.curves
    told = json.loads((tmp_path / "e.json").read_text())
    assert [row["measure"] for row in told["table"]] == [row["measure"] for row in found.table()]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="no evaluation that lrp_fast saved"):
        load(tmp_path / "other.json")


def test_scores_of_a_file_are_a_method(model, tmp_path):
    ours = {case["id"]: gradient(model, torch.tensor(case["input_ids"]), _asked(case)).tolist() for case in cases(3)}
    del ours["case 2"]
    (tmp_path / "s.json").write_text(json.dumps(ours))
    methods = {"gradient": gradient, "theirs": scores_from(tmp_path / "s.json")}
    found = lrp_fast.evaluate(model, cases(3), methods, ["morf_lerf"])
    by_key = {(row.case, row.method): row for row in found.rows}
    for case in ("case 0", "case 1"):
        assert by_key[case, "theirs"].measures == by_key[case, "gradient"].measures
    assert by_key["case 2", "theirs"].why == "s.json holds no scores of case 'case 2'"


def _asked(case):
    from lrp_fast.question import Question
    from lrp_fast.targets import Request

    return Question(None, None, [Request(case["target"], case["contrast"])], *[None] * 8)


def test_the_same_prompts_are_run_once_for_all_methods(model, monkeypatch):
    def ran(methods, protocols):
        count = []
        read = perturb.logits_behind

        def counted(model, rows, *how):
            count.append(len(rows))
            return read(model, rows, *how)

        with monkeypatch.context() as patch:
            patch.setattr(perturb, "logits_behind", counted)
            lrp_fast.evaluate(model, cases(2), methods, protocols)
        return sum(count)

    once = ran({"gradient": gradient}, ["agreement"])
    assert once == 2 * (1 + 9)
    assert ran(METHODS, ["agreement"]) == once
    assert ran({"gradient": gradient, "again": gradient}, FAST) == ran({"gradient": gradient}, FAST)


def test_a_plan_counts_the_tokens_that_are_run(model):
    """By rankings like the plan's own, of protocols that stop nowhere early."""
    tokens = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, named: tokens.append(named["inputs_embeds"].shape[:2].numel())
        if named.get("inputs_embeds") is not None else None,
        with_kwargs=True,
    )  # fmt: skip
    drawn = {}

    def method(number):
        def scores(model, input_ids, question):
            scene = Scene(drawn[tuple(input_ids.tolist())], len(input_ids), [], None)
            return torch.from_numpy(scene.drawn("plan", number).random(len(input_ids)))

        return scores

    drawn = {tuple(case["input_ids"]): case["id"] for case in cases(2)}
    names = [*FAST, "disrupt_recover", "soft"]
    try:
        planned = plan(model, cases(2), 2, names)
        assert not tokens
        lrp_fast.evaluate(model, cases(2), {"0": method(0), "1": method(1)}, names)
    finally:
        handle.remove()
    wholes = 2 * 9  # whose targets are settled
    assert [one.protocol for one in planned] == names and all(one.cases == 2 for one in planned)
    assert sum(one.tokens for one in planned) == sum(tokens) - wholes
    (graphs,) = plan(model, cases(2), 3, ["graph_cuts"])
    assert graphs.tokens == 2 * 3 * 9 * PROTOCOLS["graph_cuts"].prompts


def test_every_protocol_runs_by_its_name(model):
    methods = {"cp": OfRule(), "position": by_position}
    found = lrp_fast.evaluate(model, cases(2, gold=[[2, 4]]), methods, list(PROTOCOLS))
    for row in found.rows:
        if row.protocol == "graph_cuts" and row.method == "position":
            assert "no rules" in row.why
        elif row.protocol == "flip" and row.why is not None:
            assert "does not prefer" in row.why
        else:
            assert row.why is None, row
            better = PROTOCOLS[row.protocol].better
            assert better and set(better) <= set(row.measures), row


def test_a_method_that_writes_into_its_prompt_harms_no_other(model):
    def writes(model, input_ids, question):
        input_ids.zero_()
        question.ids.zero_()
        return by_position(model, input_ids, question)

    read = []

    def reads(model, input_ids, question):
        read.append((input_ids.tolist(), question.ids.tolist()))
        return by_position(model, input_ids, question)

    lrp_fast.evaluate(model, cases(1), {"writes": writes, "reads": reads}, ["agreement"])
    assert read == [(cases(1)[0]["input_ids"],) * 2]


def test_special_tokens_stay_and_units_are_added_up(model, tokenizer):
    seen = []

    def protocol(scores, scene):
        seen.append((scene.spans, scene.of_units(scores).tolist(), scene.gold.tolist()))
        return {}

    case = {"id": "a", "prompt": "<s> the capital . not <s> australia is", "target": "sydney", "contrast": "canberra",
            "gold": ["capital", "australia"]}  # fmt: skip
    for units in ("tokens", 2, "sentences"):
        found = lrp_fast.evaluate(
            model, [case], {"position": by_position}, {"mine": Protocol(protocol, {})}, tokenizer=tokenizer, units=units
        )
        assert found.rows[0].why is None
    places = [1, 2, 3, 4, 6, 7]
    assert seen[0] == ([(i, i + 1) for i in places], places, [i in (2, 6) for i in places])
    assert seen[1] == ([(1, 3), (3, 5), (6, 8)], [3, 7, 13], [True, False, True])
    assert seen[2] == ([(1, 4), (4, 5), (6, 8)], [6, 4, 13], [True, False, True])


def test_one_replacement_may_hold_for_all(model, tokenizer):
    given = (model, cases(1), {"gradient": gradient}, ["morf_lerf"])
    own = lrp_fast.evaluate(*given, replacement="pad", tokenizer=tokenizer)
    other = lrp_fast.evaluate(*given, tokenizer=tokenizer)
    assert own.rows[0].curves["morf_curve"][1:] != other.rows[0].curves["morf_curve"][1:]
    assert own.rows[0].curves["morf_curve"][0] == other.rows[0].curves["morf_curve"][0]


@pytest.mark.parametrize(
    ("named", "error", "words"),
    [
        ({"protocols": ["flips"]}, ValueError, "no protocol 'flips': name some of flip, morf_lerf"),
        ({"protocols": "flip"}, TypeError, "protocols must be a list of names"),
        ({"protocols": []}, ValueError, "there are no protocols"),
        ({"methods": {"mine": 3}}, TypeError, "method 'mine' must be a callable"),
        ({"replacement": "drop"}, ValueError, "replacement must be one of"),
        ({"units": "words"}, TypeError, 'units must be "tokens", "sentences" or a number'),
        ({"units": "sentences"}, ValueError, "give tokenizer="),
        ({"cases": []}, ValueError, "there are no cases"),
    ],
)
def test_what_no_case_could_be_judged_with_is_refused(model, named, error, words):
    given = {"cases": cases(1), "methods": METHODS, "protocols": FAST} | named
    with pytest.raises(error, match=words):
        lrp_fast.evaluate(model, **given)


def test_encoders_are_refused():
    with pytest.raises(ValueError, match="causal language models, and BertForMaskedLM is none"):
        lrp_fast.evaluate(encoders.build("bert"), cases(1), METHODS, FAST)
