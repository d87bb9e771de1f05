"""`lrp-fast ablate`: what is printed is what `lrp_fast.ablate` finds."""

import json
import re
from dataclasses import asdict

import pytest
import transformers

import lrp_fast

TEXT = "the capital of australia is"
PROMPT = ("--prompt", TEXT)
TWO = ("--target", "sydney", "--contrast", "canberra")


@pytest.fixture
def made(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    return model, transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def cut(run):
    """``cut(what, *arguments)``: the record that is printed."""

    def call(what, *arguments):
        status, out, err = run(*PROMPT, *TWO, "--cut", json.dumps(what), *arguments, "--json", command="ablate")
        assert status == 0, err
        return json.loads(out)

    return call


@pytest.mark.parametrize(
    "what",
    [
        {"tokens": [3, -1]},
        {"sources": {"who": "australia", "what": [["chars", 4, 11], [0, 1]]}},
        {"nodes": [[1, 3], [1, 4]]},
        {"edges": [[1, 3, 4], [1, 0, 4]]},
    ],
    ids=lambda what: next(iter(what)),
)
def test_what_is_cut_and_predicted(cut, made, what):
    model, tokenizer = made
    graph = lrp_fast.GraphSpec(topk=5)
    asked = dict(tokenizer=tokenizer, graph=graph, sources=what.get("sources"))
    result = lrp_fast.attribute(model, TEXT, "sydney", "canberra", **asked)
    found, told = lrp_fast.ablate(model, TEXT, what, result=result, tokenizer=tokenizer), cut(what)
    assert found.predicted and told["predicted"] == pytest.approx(found.predicted, rel=1e-5)
    assert (told["before"], told["value"], told["change"]) == (found.before, found.value, found.change)
    assert (told["cut"], told["replacement"]) == (what, "zero")
    assert told["after"] == json.loads(json.dumps(asdict(found.after)))
    assert told["explained"]["terms"][0]["contrast"]["text"] == "canberra"
    assert cut(what, "--no-prediction") == told | {"predicted": None}


@pytest.mark.parametrize(
    "what",
    [
        {"heads": [[1, 0]]},
        {"neurons": [[1, 7]], "tokens": [0]},
        {"edges": [[1, 3, 4, 0]]},
        {"edges": [[1, 3, 4], [2, 3, 4]]},
        {"edges": [[1, 3, 4]], "tokens": [0]},
    ],
    ids=str,
)
def test_where_nothing_is_predicted_no_attribution_runs(cut, made, monkeypatch, what):
    model, tokenizer = made
    found = lrp_fast.ablate(model, TEXT, what, target="sydney", contrast="canberra", tokenizer=tokenizer)
    monkeypatch.setattr(lrp_fast, "attribute", None)
    told = cut(what)
    assert (told["before"], told["value"], told["predicted"]) == (found.before, found.value, None)


@pytest.mark.parametrize("replacement", ["mean", "the capital of zealand is"])
def test_replacements(cut, made, monkeypatch, replacement):
    model, tokenizer = made
    what = {"tokens": [3]}
    monkeypatch.setattr(lrp_fast, "attribute", None)
    told = cut(what, "--replacement", replacement)
    found = lrp_fast.ablate(model, TEXT, what, replacement, "sydney", "canberra", tokenizer=tokenizer)
    assert (told["value"], told["predicted"], told["replacement"]) == (found.value, None, replacement)
    assert found.value != found.before


def test_the_tables(run, tmp_path):
    (tmp_path / "cut.json").write_text('{"tokens": [3]}', "utf-8")
    status, out, err = run(*PROMPT, *TWO, "--cut", "cut.json", command="ablate")
    assert status == 0 and "loading" in err and "loading" not in out
    assert {path.name for path in tmp_path.iterdir()} == {"cut.json"}
    told = json.loads(run(*PROMPT, *TWO, "--cut", "cut.json", "--json", command="ablate")[1])
    assert out.startswith("Why 'sydney' rather than 'canberra' after position 4?\nlogit difference ")
    for name, value in {"before": "before", "after": "value", "change": "change", "predicted": "predicted"}.items():
        assert f"\n{name:9}  {told[value]:+#11.4g}\n" in out
    for whose, one in {"whole": "explained", "cut": "after"}.items():
        rows = out.partition(f"best next tokens of the {whose} model after position 4\n")[2].splitlines()[2:12]
        assert [row.split()[1] for row in rows] == [repr(token["text"]) for token in told[one]["best"]]
    assert out.count("target") == out.count("contrast") == 2
    status, out, _ = run(*PROMPT, *TWO, "--cut", "cut.json", "--no-prediction", command="ablate")
    assert status == 0 and "predicted" not in out
    status, out, _ = run(*PROMPT, *TWO, "--cut", '{"heads": [[0, 1]]}', command="ablate")
    assert status == 0 and "nothing is predicted: " in out


def test_an_answer(run, made):
    model, tokenizer = made
    asked = ("--answer", "new zealand", "--cut", '{"nodes": [[2, 5]]}', "--json")
    status, out, _ = run(*PROMPT, *asked, command="ablate")
    assert status == 0
    result = lrp_fast.attribute(model, TEXT, contrast=("top", 1), answer="new zealand", tokenizer=tokenizer)
    found = lrp_fast.ablate(model, TEXT, {"nodes": [(2, 5)]}, result=result, tokenizer=tokenizer)
    told = json.loads(out)
    assert told["value"] == found.value and told["predicted"] == pytest.approx(found.predicted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: --cut"),
        (("--cut", "{"), "--cut is no JSON: "),
        (("--cut", '{"tokens": [1], "tokens": [2]}'), "--cut is no JSON: it says 'tokens' twice"),
        (("--cut", "[4]"), "--cut must hold a JSON object of lists"),
        (("--cut", "absent.json"), "cannot read --cut: .*absent.json"),
        (("--cut", "4.json"), "--cut 4.json must hold a JSON object of lists"),
        (("--cut", "{}"), "what must be a dict that says what is cut"),
        (("--cut", '{"token": [4]}'), "what names 'token': it may name 'tokens'"),
        (("--cut", '{"tokens": [5]}'), "'tokens' names position 5, and there are 5"),
        (("--cut", '{"tokens": 4}'), "'tokens' must be a list of positions, not 4"),
        (("--cut", '{"edges": [[1, 4, 3]]}'), "would come from the future"),
        (("--cut", '{"edges": [4]}'), "'edges' must be a list of"),
        (("--cut", '{"sources": ["who"]}'), "'sources' names some, and no result with sources is given"),
        (("--cut", '{"tokens": [4]}', "--replacement", "the capital"), "replacement is a prompt of 2 tokens"),
        (("--cut", '{"edges": [[1, 3, 4]]}', "--replacement", "mean"), "edges alone are cut, which are hidden"),
        (("--cut", '{"tokens": [4]}', "--target", "sydney", "--contrast", "sydney"), "never diverge"),
        (("--cut", '{"tokens": [4]}', "--tolerance", "1"), "tolerance must be at least 0 and below 1"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2_and_one_sentence(run, tmp_path, arguments, message):
    (tmp_path / "4.json").write_text("[4]", "utf-8")
    status, out, err = run(*PROMPT, *arguments, command="ablate")
    assert status == 2 and out == "" and re.search(message, err) and "Traceback" not in err


def test_what_cannot_be_cut_is_refused_before_anything_is_attributed(run, monkeypatch):
    monkeypatch.setattr(lrp_fast, "attribute", None)
    status, _, err = run(*PROMPT, "--cut", '{"tokens": [5]}', command="ablate")
    assert status == 2 and "there are 5" in err
