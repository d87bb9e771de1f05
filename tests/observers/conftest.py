"""Passes whose tiers are given by hand."""

import pytest

import lrp_fast.attribution
from lrp_fast.memory import Plan

# Where each layer's tensors wait, and how many tokens an MLP takes at a time.
PLACED = {"graph": (("graph",) * 3, 23), "mixed": (("file", "host", "graph"), 5), "host": (("host",) * 3, 23)}


@pytest.fixture(params=PLACED)
def placed(request, monkeypatch):
    """The name of how the tensors of `lrp_fast.attribute` wait while a test runs, 23 tokens through 3 layers."""
    tiers, rows = PLACED[request.param]
    plan = Plan(23, tiers, rows, {}, {"cpu": 1 << 30}, {}, {}, 0, 0, 0, 0)
    monkeypatch.setattr(lrp_fast.attribution, "planned", lambda *given, **named: plan)
    return request.param
