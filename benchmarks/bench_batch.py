"""Sixteen prompts of 54 tokens: ours packed into one pass, ours one by one, LXT's own batch. Two threads, 2 minutes."""

import prompts
import pytest
import turns
from bench_attribution import BOUND
from turns import Reference

NUMBER, TOKENS = 16, 54
CASES = {
    "forward, one batch": ("ours", "forwards"),
    "forward, one by one": ("ours", "each_forward"),
    "ours, one by one": ("ours", "one_by_one"),
    "ours, one by one in a session": ("ours", "in_session"),
    "ours, attribute_batch": ("ours", "batch"),
    "LXT, one batch": ("lxt_attribution", "batch"),
}
GROUP = f"batch, {NUMBER} prompts of {TOKENS} tokens"


def pytest_generate_tests(metafunc):
    number = 2 if metafunc.config.getoption("--tiny") else 5
    given = [pytest.param(turn, case, id=f"{case}-turn{turn}") for turn in range(number) for case in CASES]
    metafunc.parametrize(("turn", "case"), given)


def test_batch(request, contender, tokenizer, turn, case):
    number = 3 if request.config.getoption("--tiny") else NUMBER
    asked = prompts.short(tokenizer, number, TOKENS)
    peer, call = CASES[case]
    held = None
    if not case.startswith("forward"):
        held = Reference("float64", BOUND)
        request.config.stash[turns.KEY].reference(GROUP, held.name, "ours", "one_by_one", asked, dtype="float64")
    contender(GROUP, case, peer, call, asked, against=held, prompts=number, tokens=TOKENS)
