"""What benchmarks/faithfulness.py keeps, and the README's tables of it."""

import importlib
import json
import sys

import pytest

ROWS = {"attnlrp": [1.0, 2.0, 1.0], "random": [5.0, 7.0, 9.0]}


@pytest.fixture
def found():
    """As the driver writes it, of two methods and three cases."""

    def part(**protocols):
        rows = []
        for protocol, measures in protocols.items():
            for measure in measures:
                for method, values in ROWS.items():
                    mean, best = sum(values) / 3, method == "attnlrp"
                    row = {"protocol": protocol, "measure": measure, "better": "lower", "method": method, "n": 3}
                    row |= {"mean": mean, "low": min(values), "high": max(values), "failed": 0, "best": best}
                    rows.append(row | {"p": None if best else 0.01})
        better = {protocol: dict.fromkeys(measures, "lower") for protocol, measures in protocols.items()}
        return {"about": {"methods": list(ROWS)}, "better": better, "table": rows}

    ranks = {name: {f"n{i}": {"rank": value} for i, value in enumerate(values)} for name, values in ROWS.items()}
    return {
        "commit_info": {"id": "abc", "dirty": False}, "machine_info": {"cpu": "a CPU"},
        "versions": {"torch": "2", "transformers": "5"}, "turned": ["b"], "kinds": {"a": "fact", "b": "fact"},
        "steps": 5, "search": {"method": "attnlrp", "measure": "flip, flipped_at", "cases": ["c"], "table": [{}] * 9},
        "needles": {"n0": [256, 0.0], "n1": [256, 0.5], "n2": [1024, 0.5]},
        "parts": {
            "short": part(flip=["flipped_at", "share"], recovery=["recovery", "rank"]),
            "curves": part(
                morf_lerf=["area", "comprehensiveness", "sufficiency"], contextcite=["lds", "drop_1"],
                agreement=["spearman"], disrupt_recover=["total"], graph_cuts=["edges_gain", "edges_sign"],
            ),
            "needles": {"measures": {"recovery": ranks}},
        },
    }  # fmt: skip


@pytest.fixture
def tables(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("faithfulness_tables")


def test_the_tables(tables, found, tmp_path):
    (tmp_path / "evaluate-smollm2.json").write_text(json.dumps(found))
    text = tables.section(tmp_path)
    assert text.startswith("**SmolLM2-135M-Instruct.** 2 prompts; of 1 it prefers the mistake")
    assert "`attnlrp` is the best of 9 ε and γ by flip, flipped_at" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| method | tokens to flip ↓ | of all ↓ | gold in the best 10 % ↓ |")
    assert rows[0].endswith("the paper's |")
    assert rows[2].startswith("| `attnlrp` | **1.33 [1, 2]** |") and rows[2].endswith("| 1.7 |")
    assert rows[3].startswith("| `random` | 7 [5, 9] † |") and rows[3].endswith("|  |")
    assert "| rank of the needle's best token | 256 tokens, 2 cases | 1,024 tokens, 1 case |" in text
    assert "| `random` | 6 | 9 |" in text and "Commit abc, a CPU, torch 2, transformers 5." in text
    assert text.count("failures of larger models; what stands in for a masked token there") == 1
    assert "The curves have 5 steps." in text and "never flips" not in text
    assert "Gemma" not in text and "Cases: `flip` 3, `recovery` 3." in text


def test_what_the_means_are_of(tables, found):
    """Fewer cases than the others', one case, and preferences that never flip."""
    short = found["parts"]["short"]
    rank, share = (next(row for row in short["table"] if row["measure"] == name) for name in ("rank", "share"))
    rank["n"] = 2
    share |= {"low": None, "high": None}
    for method, mean in (("attnlrp", 1.0), ("random", 0.75)):
        short["table"].append({"protocol": "flip", "measure": "flipped", "method": method, "n": 3, "mean": mean})
    del found["parts"]["needles"]["measures"]["recovery"]["random"]["n1"]
    text = tables.of_model("smollm2", found)
    (line,) = (line for line in text.splitlines() if line.startswith("| `attnlrp`") and line.endswith("| 1.7 |"))
    assert line == "| `attnlrp` | **1.33 [1, 2]** | **1.33** | **1.33 [1, 2]** | **1.33 [1, 2]** of 2 | 1.7 |"
    assert "from 0% of the cases (`attnlrp`) to 25% (`random`). The paper's" in text
    assert "| `random` | 5 of 1 | 9 |" in text and "Cases: `flip` 3, `recovery` 2 to 3." in text


def test_nothing_to_tell(tables, tmp_path):
    assert tables.section(tmp_path) == "There are none of this code: `make evaluate`."


def test_the_driver_asks_for_what_there_is(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    driver = importlib.import_module("faithfulness")
    from lrp_fast.evaluate import PROTOCOLS
    from lrp_fast.evaluate.methods import named

    assert {*driver.SHORT, *driver.CURVES} <= set(PROTOCOLS)
    assert all(map(named, (*driver.WORDS, *driver.COSTLY)))
    assert {*driver.PASSES} <= {*driver.WORDS, *driver.COSTLY}
    short = driver.short_cases()
    assert len(short) - round(driver.HELD_OUT * len(short)) >= 200
    assert [case["length"] for case in driver.needle_cases([256])] == [256] * 5
    (curves,) = driver.protocols(("morf_lerf",)).values()
    assert curves.run.keywords == {"steps": driver.STEPS} and curves.better == PROTOCOLS["morf_lerf"].better


@pytest.fixture
def driver(root, monkeypatch, tmp_path):
    """The driver, which writes into an empty folder."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    found = importlib.import_module("faithfulness")
    monkeypatch.setattr(found, "BUILD", tmp_path / "build")
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    return found


def test_what_other_code_has_found_is_thrown_away(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "commit", lambda: {"id": "abc", "dirty": False})
    folder = driver.begun(tmp_path / "build", anew=False)
    (folder / "search.json").write_text("{}")
    asked = []
    monkeypatch.setattr(driver, "changed_since", lambda commit: asked.append(commit))
    driver.begun(folder, anew=False)
    assert asked == ["abc"] and (folder / "search.json").exists()
    monkeypatch.setattr(driver, "changed_since", lambda commit: True)
    driver.begun(folder, anew=False)
    assert [one.name for one in folder.iterdir()] == ["commit"]
    monkeypatch.setattr(driver, "changed_since", lambda commit: False)
    (folder / "search.json").write_text("{}")
    driver.begun(folder, anew=True)
    assert [one.name for one in folder.iterdir()] == ["commit"]
    monkeypatch.setattr(driver, "commit", lambda: {"id": "abc", "dirty": True})
    assert (driver.begun(folder, anew=True) / "commit").read_text() == "none"  # what was found is of no commit


def test_the_driver_comes_to_its_end_and_goes_on(driver, tables, tiny, smollm2, tmp_path, monkeypatch):
    tokenizer = smollm2[1]
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    some = driver.short_cases()[::40]
    needles = driver.needle_cases([256])[:2]
    for name, value in {
        "loaded": lambda name: (model, tokenizer), "short_cases": lambda: some,
        "needle_cases": lambda of: needles if of else [],
        "HELD_OUT": 0.3, "EVERY": 4, "changed_since": lambda commit: False,
    }.items():  # fmt: skip
        monkeypatch.setattr(driver, name, value)
    drawn = {}
    monkeypatch.setattr(driver, "pictures", lambda name, found, needles: drawn.update(found))
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", "smollm2"])
    driver.main()
    found = json.loads((tmp_path / "evaluate-smollm2.json").read_text())
    assert list(found["parts"]) == list(drawn) == ["short", "curves", "needles"]
    assert len(found["kinds"]) == len(some) == 6 and len(found["search"]["cases"]) == 2
    assert {*driver.WORDS} <= {*found["parts"]["short"]["measures"]["flip"]}
    assert tables.section(tmp_path).startswith("**SmolLM2-135M-Instruct.** 6 prompts; ")
    judging = importlib.import_module("lrp_fast.evaluate.judging")
    monkeypatch.setattr(judging, "stage", None)  # nothing is judged twice
    driver.main()
    again = json.loads((tmp_path / "evaluate-smollm2.json").read_text())
    assert again["parts"] == found["parts"] and again["search"] == found["search"]
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", "smollm2", "--needles"])
    driver.main()
    assert list(json.loads((tmp_path / "evaluate-smollm2.json").read_text())["parts"]) == ["short", "curves"]
    assert "needle's best token" not in tables.section(tmp_path)


def test_what_follows_is_of_the_committed_results(tables, root):
    """The figures in the README's words."""
    from lrp_fast.evaluate.statistics import sign_flips

    words = (root / "README.md").read_text("utf-8").split("**Which rule for what")[1].split("## Studies")[0]
    text = " ".join(words.split())
    found = [tables.read(f"evaluate-{name}") for name in ("smollm2", "gemma3")]
    values = [one["parts"]["short"]["measures"]["flip"] for one in found]

    def flips(method, model):
        return [one["flipped_at"] for one in values[model][method].values()]

    def mean(method, model):
        numbers = flips(method, model)
        return f"{sum(numbers) / len(numbers):.3g}"

    assert f"Over {len(flips('cp', 0))} prompts a model" in text and len(flips("cp", 1)) == len(flips("cp", 0))
    assert f"after {mean('cp', 0)} tokens (SmolLM2) and {mean('cp', 1)} (Gemma 3)" in text
    assert f"of `attnlrp` after {mean('attnlrp', 0)} and {mean('attnlrp', 1)}" in text
    assert f"of |gradient × input| after {mean('abs_gradient', 0)} and {mean('abs_gradient', 1)}" in text
    assert f"at random after {mean('random', 0)} and {mean('random', 1)}" in text
    assert f"flips Gemma 3 soonest ({float(mean('attnlrp:gamma=0.5', 1)):.2f})" in text
    assert found[1]["search"]["method"] == "attnlrp:gamma=0.5"
    for model, said in ((0, "(p = 0.33)"), (1, "(p = 0.04)")):
        apart = [a - values[model]["cp"][case]["flipped_at"] for case, a in
                 ((case, one["flipped_at"]) for case, one in values[model]["attnlrp"].items())]  # fmt: skip
        assert said == f"(p = {sign_flips(apart):.2f})" and said in text
        for rule in ("cp", "attnlrp"):
            assert sorted(flips(rule, model))[len(flips(rule, model)) // 2] == 1
    gold = found[1]["parts"]["short"]["measures"]["recovery"]
    shares = [sum(one["recovery"] for one in gold[rule].values()) / len(gold[rule]) for rule in ("cp", "attnlrp")]
    assert f"({shares[0]:.3f} to {shares[1]:.3f})" in text
    held = []
    for model, one in enumerate(found):
        rows = (row for row in one["parts"]["curves"]["table"] if row["measure"] == "edges_sign")
        signs = {row["method"]: row["mean"] for row in rows}
        assert max(signs, key=signs.get) == "attnlrp"
        held.append({rule: f"{signs[rule]:.0%}"[:-1] for rule in ("attnlrp", "cp")})
        assert float(mean("gradient", model)) > float(mean("random", model))
    assert f"{held[0]['attnlrp']} and {held[1]['attnlrp']} % move the logit difference" in text
    assert f"of cp's {held[0]['cp']} and {held[1]['cp']} %" in text
