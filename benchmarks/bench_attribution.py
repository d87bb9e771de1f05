"""Attribution of one prompt over the context length: ours, LXT, and plain gradient x input, each beside its own
forward.

Two threads, a quarter of an hour; 8,192 tokens are bench_attribution_long.py's. Relevance is held against ours in
float64 up to 1,024 tokens; beyond, ours and LXT's are held against each other. float32 rounds to 2^-24, and thirty
layers of sums over thousands of numbers make 1e-6 to 1e-5 of it: the bound, 1e-4 of the greatest relevance, is a
hundredth of what bfloat16 does.
"""

import prompts
import pytest
import turns
from turns import Reference

LENGTHS = {128: 9, 512: 7, 1024: 5, 2048: 5}  # tokens: turns
TINY = {64: 2}
EXACT = 1024  # tokens up to which there is a reference in float64
WARM = 2048  # and up to which a call follows one like it: beyond, all contenders' heaps together would not fit
TOLERANCE = 0.005
BOUND = 1e-4
CONSERVED = "the explained value"  # without biases cp hands on all that it gets: the relevance of the tokens sums to it
HALF_OF_BFLOAT16 = (
    0.0115  # sum of |error| over sum of |relevance|; bfloat16 itself moves it by 0.023, see bench_error.py
)
CASES = {  # name: peer, call, what is given beside the prompt
    "forward": ("ours", "forward", {}),
    "ours": ("ours", "attribute", {}),
    "ours, tolerance": ("ours", "attribute", {"tolerance": TOLERANCE}),
    "ours, cp": ("ours", "attribute", {"rule": "cp"}),
    "ours, small budget": ("ours", "attribute", {}),
    "LXT's forward": ("lxt_attribution", "forward", {}),
    "LXT": ("lxt_attribution", "attribute", {}),
    "LXT + checkpointing": ("lxt_attribution", "attribute", {"checkpointing": True}),
    "gradient x input": ("ours", "gradient", {}),
}
OWN_FORWARD = {"LXT": "LXT's forward", "LXT + checkpointing": "LXT's forward"}  # the others': "forward"


def budget(tokens: int) -> int:
    """Bytes above the model for the small budget: 0.4 GB at 2,048 tokens, 0.8 GB at 8,192."""
    return int(0.8e9 / 3 + 0.2e9 / 3 * tokens / 1024)


def pytest_generate_tests(metafunc):
    lengths = TINY if metafunc.config.getoption("--tiny") else LENGTHS
    given = [
        pytest.param(tokens, turn, case, id=f"{tokens}-{case}-turn{turn}")
        for tokens, number in lengths.items()
        for turn in range(number)
        for case in CASES
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def test_attribution(request, contender, tokenizer, tokens, turn, case):
    measure(request.config.stash[turns.KEY], contender, tokenizer, tokens, turn, case)


def against(case: str, tokens: int) -> Reference | None:
    if case.endswith("forward"):
        return None
    if case == "ours, tolerance":
        return Reference("ours", HALF_OF_BFLOAT16, summed=True)
    if case == "ours, small budget":
        return Reference("ours", BOUND)
    if case in ("ours, cp", "gradient x input") and tokens <= EXACT:
        return Reference(f"{case}, float64", BOUND)
    if case == "ours, cp":
        return Reference(CONSERVED, 10 * BOUND)
    if case == "gradient x input":
        return None
    if tokens <= EXACT:
        return Reference("float64", BOUND)
    return Reference("ours" if case.startswith("LXT") else "LXT + checkpointing", BOUND)


def measure(found, contender, tokenizer, tokens, turn, case):
    group, asked = f"attribution, {tokens} tokens", prompts.needle(tokenizer, tokens)
    held = against(case, tokens)
    if turn == 0 and held and held.name.endswith("float64"):
        rule = {"ours, cp": "cp", "gradient x input": "gradient"}.get(case, "attnlrp")
        given = asked | {"rule": rule}
        found.reference(group, held.name, "ours", "attribute", given, dtype="float64")
    peer, call, given = CASES[case]
    if case == "ours, small budget":
        given = {"host_budget": budget(tokens)}
    info, numbers = {"tokens": tokens, "own_forward": OWN_FORWARD.get(case, "forward")}, None
    if held and held.name == CONSERVED:
        numbers = lambda result: [sum(result["relevance"])]  # noqa: E731
    warm_ups = 1 if tokens <= WARM else 0
    result = contender(group, case, peer, call, asked | given, against=held, numbers=numbers, warm_ups=warm_ups, **info)
    if numbers:
        found.results[group, CONSERVED] = [result["value"]]
