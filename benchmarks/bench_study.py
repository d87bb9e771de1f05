"""A thousand short cases of a tiny model: `attribute_batch`, and a study of them, with its files, log and table. Two
threads, 1 minute.

The study's folder is a new one in each turn, on the disk of the system's temporary folder.
"""

import random
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from bench_attribution import BOUND
from turns import Reference

import lrp_fast
from lrp_fast import study

NUMBER = 1000
CASES = ("attribute_batch", "study.run")


def pytest_generate_tests(metafunc):
    number = 2 if metafunc.config.getoption("--tiny") else 9
    given = [pytest.param(turn, case, id=f"{case}-turn{turn}") for turn in range(number) for case in CASES]
    metafunc.parametrize(("turn", "case"), given)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def made(number: int) -> list[dict]:
    """Of 8 to 32 tokens, with target and contrast."""
    draw = random.Random(0)
    return [
        {"id": f"case {i}", "input_ids": [draw.randrange(1, 256) for _ in range(draw.randint(8, 32))]}
        | {"target": draw.randrange(128), "contrast": 128 + draw.randrange(128)}
        for i in range(number)
    ]


def test_study(request, timed, model, tmp_path, turn, case):
    cases = made(20 if request.config.getoption("--tiny") else NUMBER)
    columns = {name: [one[name] for one in cases] for name in ("input_ids", "target", "contrast")}

    def run():
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "run"
        study.run(model, cases, folder)
        return folder

    group, info = f"study, {len(cases):,} cases", {"prompts": len(cases)}
    if case == "attribute_batch":
        call = lambda: lrp_fast.attribute_batch(model, **columns)  # noqa: E731
        timed(group, case, call, numbers=lambda found: [one.value for one in found], **info)
    else:
        held = Reference("attribute_batch", BOUND)
        timed(group, case, run, against=held, numbers=lambda folder: study.table(folder).value.tolist(), **info)
