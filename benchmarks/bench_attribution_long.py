"""As bench_attribution.py, at 8,192 tokens. Two threads, 18 minutes.

What is beyond the memory that a process may take is a row, too.
"""

import pytest
import turns
from bench_attribution import CASES, measure

TOKENS, TURNS = 8192, 2
ONCE = ("ours, small budget",)
LEFT_OUT = ("ours, cp",)


def pytest_generate_tests(metafunc):
    tokens = 96 if metafunc.config.getoption("--tiny") else TOKENS
    given = [
        pytest.param(tokens, turn, case, id=f"{tokens}-{case}-turn{turn}")
        for turn in range(TURNS)
        for case in CASES
        if case not in LEFT_OUT and (turn == 0 or case not in ONCE)
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def test_attribution_long(request, contender, tokenizer, tokens, turn, case):
    measure(request.config.stash[turns.KEY], contender, tokenizer, tokens, turn, case)
