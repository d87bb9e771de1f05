"""As bench_error.py, at 8,192 tokens of SmolLM2 and 16,384 of Gemma 3. Two threads, 15 minutes."""

import turns
from bench_error import measure, parametrize, tokenizers  # noqa: F401, a fixture

LENGTHS = {"smollm2": (8192,), "gemma3": (16384,)}
TOLERANCES = (0.005, 0.03)


def pytest_generate_tests(metafunc):
    parametrize(metafunc, {"gemma3": (1100,)} if metafunc.config.getoption("--tiny") else LENGTHS, TOLERANCES, 1)


def test_error_long(request, contender, tokenizers, model, tokens, turn, case):  # noqa: F811
    measure(request.config.stash[turns.KEY], contender, tokenizers[model], model, tokens, case)
