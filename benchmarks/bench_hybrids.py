"""Random models whose layers carry a state, 4,096 tokens: attribution, and with a graph, each over the model's own
forward pass. Two threads, 8 minutes. With a graph no relevance differs."""

import pytest
import torch
from bench_attribution import BOUND
from hybrids import MODELS
from turns import Reference

TOKENS, TURNS = 4096, 2
CASES = {"forward": ("forward", {}), "ours": ("attribute", {}), "ours, topk 16": ("attribute", {"graph": {"topk": 16}})}


def pytest_generate_tests(metafunc):
    given = [
        pytest.param(name, turn, case, id=f"{name}-{case}-turn{turn}")
        for name in MODELS
        for turn in range(TURNS)
        for case in CASES
        if turn == 0 or case != "ours, topk 16"
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def test_hybrid(request, contender, tokens, turn, case):
    name, length = tokens, 64 if request.config.getoption("--tiny") else TOKENS
    ids = torch.randint(3, 4096, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    call, given = CASES[case]
    held = Reference("ours", BOUND) if case == "ours, topk 16" else None
    asked = {"ids": ids, "target": 3, "contrast": 4}
    group = f"hybrid {name}, {length} tokens"
    contender(group, case, "ours", call, asked | given, against=held, model=name, tokens=length)
