"""Sums over segments are sums over tokens, and the rule reads them as it says."""

import pytest
import torch

from lrp_fast import attribute
from lrp_fast.sources import Division
from lrp_fast.study import instruction_following
from lrp_fast.study.segments import spans, sums


def given(**relevance):
    return [{"name": name.replace("_", " "), "relevance": one} for name, one in relevance.items()]


@pytest.mark.parametrize(
    ("value", "segments", "finding"),
    [
        (2.0, given(instruction_1=-0.1, rest=5.0), "under-weighted relevant instruction"),
        (2.0, given(instruction_1=0.1, rest=-5.0), "over-weighted irrelevant instruction"),
        (2.0, given(instruction_1=0.1, instruction_2=-0.1), "both"),
        (1.0, given(instruction_1=-0.1), "neither"),  # the bound itself is not above it
        (2.0, given(instruction=0.0), "neither"),
        (2.0, given(document=-1.0), None),
        (2.0, [], None),
    ],
)
def test_the_rule_of_instructions(value, segments, finding):
    assert instruction_following(value, segments) == finding


def test_the_bound_is_the_callers():
    assert instruction_following(0.5, given(instruction=1.0), 0.1) == "over-weighted irrelevant instruction"


def test_spans_are_those_of_the_groups():
    found = Division(["a", "b", "(rest)"], torch.tensor([2, 0, 0, 1, 0, 2, 1]))
    assert spans(found) == {"a": [[1, 3], [4, 5]], "b": [[3, 4], [6, 7]]}


def test_sums_are_of_every_layer(model, tokenizer):
    result = attribute(model, "the capital of australia is", "sydney", "canberra", tokenizer=tokenizer)
    assert sums(result) == []
    result = result.by_source({"instruction": (1, 3)})
    one, rest = sums(result)
    assert (one["name"], one["tokens"], rest["name"], rest["tokens"]) == ("instruction", 2, "(rest)", 3)
    truth = result.layers.double()
    assert one["layers"] == pytest.approx(truth[:, 1:3].sum(1).tolist())
    assert one["relevance"] == one["layers"][0] and one["magnitude"] == pytest.approx(truth[0, 1:3].abs().sum().item())
    assert one["relevance"] + rest["relevance"] == pytest.approx(truth[0].sum().item())
