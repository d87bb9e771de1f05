"""What a tolerance costs in relevance and saves in time, on two real models, beside what bfloat16 does to relevance.

Two threads, 13 minutes; 8,192 and 16,384 tokens are bench_error_long.py's. Errors are those against the exact pass in
float32, which at the shortest length is itself held against float64: there no tile is left out, and one tolerance shows
what that costs.
"""

import prompts
import pytest
import turns
from bench_attribution import BOUND
from transformers import AutoTokenizer
from turns import Reference

LENGTHS = {"smollm2": (1024, 2048, 4096), "gemma3": (1024, 4096)}
TOLERANCES = (0.003, 0.01, 0.03, 0.1)
SHORT, TURNS = 1024, 2


def pytest_generate_tests(metafunc):
    tiny = metafunc.config.getoption("--tiny")
    lengths, tolerances = (dict.fromkeys(LENGTHS, (96,)), TOLERANCES[1::2]) if tiny else (LENGTHS, TOLERANCES)
    parametrize(metafunc, lengths, tolerances, TURNS)


def parametrize(metafunc, lengths, tolerances, number):
    given = [
        pytest.param(model, tokens, turn, case, id=f"{model}-{tokens}-{case}-turn{turn}")
        for model, several in lengths.items()
        for tokens in several
        for turn in range(number)
        for case in ("exact", *(f"tolerance {one}" for one in tolerances[-1 if tokens <= SHORT else 0 :]), "bfloat16")
    ]
    metafunc.parametrize(("model", "tokens", "turn", "case"), given)


@pytest.fixture(scope="session")
def tokenizers(request):
    find = request.config.stash[turns.KEY].directory
    return {model: AutoTokenizer.from_pretrained(find(model)) for model in LENGTHS}


def test_error(request, contender, tokenizers, model, tokens, turn, case):
    measure(request.config.stash[turns.KEY], contender, tokenizers[model], model, tokens, case)


def measure(found, contender, tokenizer, model, tokens, case):
    group, asked = f"error, {model}, {tokens} tokens", prompts.needle(tokenizer, tokens)
    held, options = Reference("exact", None), None
    if case == "exact":
        held = None
        if tokens <= SHORT:
            held = Reference("float64", BOUND)
            found.reference(group, held.name, "ours", "attribute", asked, model, dtype="float64")
    elif case == "bfloat16":
        options = {"dtype": "bfloat16"}
    else:
        asked["tolerance"] = float(case.rpartition(" ")[2])
    contender(group, case, "ours", "attribute", asked, model=model, options=options, against=held,
              # The first long call of a process is slower than those after it.
              warm_ups=int(case == "exact"),
              tokens=tokens, model_name=model)  # fmt: skip
