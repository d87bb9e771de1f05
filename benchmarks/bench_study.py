"""Short cases: `attribute_batch`, and a study of them, with its files, log and table; of a tiny model, whose passes
take next to nothing, and of a real one. Two threads, 3 minutes.

The study's folder is a new one in each turn, on the disk of the system's temporary folder.
"""

import random
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
import turns
from bench_attribution import BOUND

import lrp_fast
from lrp_fast import study

NUMBERS = {"tiny": 1000, "smollm2": 64}  # of cases
CASES = ("attribute_batch", "study.run")


def pytest_generate_tests(metafunc):
    tiny = metafunc.config.getoption("--tiny")
    given = [
        pytest.param(name, turn, case, id=f"{name}-{case}-turn{turn}")
        for name in (["tiny"] if tiny else NUMBERS)
        for turn in range(2 if tiny else 9)
        for case in CASES
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def tiny_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models(request):
    found = {}

    def model(name):
        if name not in found:
            directory = None if name == "tiny" else request.config.stash[turns.KEY].directory(name)
            loaded = directory and transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            found[name] = loaded.eval() if loaded else tiny_model()
        return found[name]

    return model


def made(number: int) -> list[dict]:
    """Of 8 to 32 tokens, with target and contrast."""
    draw = random.Random(0)
    return [
        {"id": f"case {i}", "input_ids": [draw.randrange(1, 256) for _ in range(draw.randint(8, 32))]}
        | {"target": draw.randrange(128), "contrast": 128 + draw.randrange(128)}
        for i in range(number)
    ]


def test_study(request, timed, models, tmp_path, tokens, turn, case):
    model = models(tokens)
    cases = made(20 if request.config.getoption("--tiny") else NUMBERS[tokens])
    columns = {name: [one[name] for one in cases] for name in ("input_ids", "target", "contrast")}

    def run():
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "run"
        study.run(model, cases, folder)
        return folder

    group, info = f"study, {len(cases):,} cases, {tokens}", {"prompts": len(cases), "model": tokens}
    if case == "attribute_batch":
        call = lambda: lrp_fast.attribute_batch(model, **columns)  # noqa: E731
        timed(group, case, call, numbers=lambda found: [one.value for one in found], **info)
    else:
        held = turns.Reference("attribute_batch", BOUND)
        timed(group, case, run, against=held, numbers=lambda folder: study.table(folder).value.tolist(), **info)
