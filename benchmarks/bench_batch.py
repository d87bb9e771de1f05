"""Sixteen prompts of 54 tokens: ours packed into one pass and one by one, LXT's own batch, LXT and plain gradient x
input one by one. At this length what is not arithmetic shows: gradient x input is PyTorch's own and has no Python of
ours. Two threads, 3 minutes."""

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
    "LXT, one by one": ("lxt_attribution", "one_by_one"),
    "gradient x input, one by one": ("ours", "each_gradient"),
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
        plain = case.startswith("gradient")
        held = Reference("gradient, float64" if plain else "float64", BOUND)
        made = "each_gradient" if plain else "one_by_one"
        request.config.stash[turns.KEY].reference(GROUP, held.name, "ours", made, asked, dtype="float64")
    contender(GROUP, case, peer, call, asked, against=held, prompts=number, tokens=TOKENS)
