"""What observers kept, in rows of text."""

import torch

from lrp_fast.observers import HeadRelevance, Scores
from lrp_fast.report.observed import heads_as_json, lens_as_json, sections


def test_equal_heads_come_in_their_order_and_the_strongest_first():
    output = torch.tensor([[0.5, -2.0, 2.0], [0.0, 3.0, -0.5]])
    found = HeadRelevance(torch.tensor([4, 7]), output, output + 10, output[:, :1] + 20, output[:, :1] + 30)
    rows = heads_as_json(found, 4)
    assert [(one["layer"], one["head"], one["output"]) for one in rows] == [
        (7, 1, 3.0), (4, 1, -2.0), (4, 2, 2.0), (4, 0, 0.5)
    ]  # fmt: skip
    assert rows[1] == {
        "layer": 4, "head": 1, "kv_head": 0, "output": -2.0, "query": 8.0, "key": 20.5, "value": 30.5,
    }  # fmt: skip
    assert len(heads_as_json(found, 100)) == 6


def test_of_many_positions_the_first_are_shown(attribution):
    explained = attribution(["a"]).explained
    (term,) = explained.terms
    scores = torch.arange(16.0).reshape(2, 8) - 3
    scores[0, 1] = -torch.inf  # of a masked token
    terms = [type(term)(i, term.target, term.contrast, term.contrast_logit, term.runner_up) for i in range(8)]
    explained = type(explained)(explained.kind, terms, explained.best)
    told = lens_as_json(Scores(list(range(8)), scores, torch.arange(8)), explained)
    assert told["scores"][0][1] is None and told["positions"] == list(range(8))
    lines = sections({"lens": told}).splitlines()
    assert lines[3] == "layer  " + "  ".join(f"    after {i}" for i in range(6))
    assert lines[4].split()[:4] == ["0", "-3.000", "-", "-1.000"] and "-0" not in lines[4].split()
    assert lines[-2].endswith("than the last: 0, 1, 2, 3, 4, 5")
    assert lines[-1] == "and 2 more positions, which the JSON has"


def test_sections_stand_apart():
    neuron = {"layer": 3, "neuron": 12, "relevance": -0.25}
    text = sections({"neurons": [neuron], "heads": []})
    assert text.startswith("neurons of greatest |relevance|") and "\n\nheads of greatest" in text
    assert "\n   1      3      12      -0.2500\n" in text
