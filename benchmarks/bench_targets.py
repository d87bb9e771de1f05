"""One, two and four targets of one context, which share its forward pass. Two threads, 3 minutes."""

import prompts
import pytest
from bench_attribution import BOUND
from turns import Reference

TURNS = {512: 3, 2048: 2}
CASES = ("forward", 1, 2, 4)


def pytest_generate_tests(metafunc):
    lengths = {64: 2} if metafunc.config.getoption("--tiny") else TURNS
    given = [
        pytest.param(tokens, turn, case, id=f"{tokens}-{case}-turn{turn}")
        for tokens, number in lengths.items()
        for turn in range(number)
        for case in CASES
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def test_targets(contender, tokenizer, tokens, turn, case):
    group, asked = f"targets, {tokens} tokens", prompts.needle(tokenizer, tokens)
    if case == "forward":
        contender(group, case, "ours", "forward", asked)
        return
    first = asked["target"]
    asked["target"] = [first, *range(first + 1, first + case)]
    # Of several, the first has to be what it is alone.
    contender(
        group, f"{case} target{'s' * (case > 1)}", "ours", "attribute", asked, targets=case,
        numbers=lambda result: result[0]["relevance"], against=None if case == 1 else Reference("1 target", BOUND),
    )  # fmt: skip
