"""A tiny model with a tokenizer of ten words, and cases for it."""

import importlib
import json
import random
import shutil

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lrp_fast import GraphSpec, study

WORDS = ["<s>", "[UNK]", *["the", "capital", "of", "australia", "is", "sydney", "canberra", "new", "zealand"]]


@pytest.fixture(scope="session", autouse=True)
def the_extra():
    pytest.importorskip("pyarrow")


@pytest.fixture(scope="session")
def model(tiny):
    return tiny("llama", vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=0)


@pytest.fixture(scope="session")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]")


def prompt(number, length):
    draw = random.Random(number)
    return " ".join(draw.choice(WORDS[2:]) for _ in range(length))


def made(count):
    """Of 3 to 20 words, one of them malformed and one that this tokenizer does not take."""
    found = [
        {"id": f"case {i}", "prompt": prompt(i, 3 + i * 7 % 18), "target": "sydney", "contrast": "canberra", "n": i}
        for i in range(count)
    ]
    found[1]["segments"] = {"instruction 1": [0, 2]}
    found[2] = {"id": "malformed", "prompt": 3}
    found[3]["target"] = "rome"
    return found


@pytest.fixture(scope="session")
def cases():
    return made


@pytest.fixture
def small_packs(monkeypatch):
    """Few tokens a pass, so that a dozen cases are several packs."""
    packing = importlib.import_module("lrp_fast.packing")
    monkeypatch.setitem(packing._PASS, "cpu", 1)
    monkeypatch.setitem(packing._ENOUGH, "cpu", 30)


@pytest.fixture
def run(model, tokenizer, cases, small_packs, tmp_path):
    """``run(name, ...)``: twelve cases into that folder."""

    def call(name="run", count=12, **given):
        return study.run(model, cases(count), tmp_path / name, tokenizer=tokenizer, **given)

    return call


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def whole(kept, run, tmp_path_factory, tmp_path):
    """The folder of an undisturbed run, with graphs."""
    if not kept:
        kept["folder"] = tmp_path_factory.mktemp("whole") / "run"
        run("whole", graph=GraphSpec(topk=2))
        shutil.copytree(tmp_path / "whole", kept["folder"])
    return kept["folder"]


@pytest.fixture(scope="session")
def content():
    """``content(folder)``: what lies in a run's folder, by names, times and places apart."""

    def read(folder):
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        lines = [json.loads(line) for line in found["log.jsonl"].splitlines()]
        found["log.jsonl"] = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
        manifest = json.loads(found["manifest.json"])
        found["manifest.json"] = {name: one for name, one in manifest.items() if name not in ("begun", "command")}
        return found

    return read
