"""What the tests of libraries share that change the whole process when they are imported: they get one of their own."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture
def elsewhere(root):
    """``elsewhere(script, *arguments)``: the JSON in the last line that a script prints, which may import demo/."""

    def run(script, *arguments):
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=root / "demo", env=environment, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def saved(tiny, tmp_path):
    """``saved(family)``: (a tiny model in float64, the folder where it lies, with a tokenizer)."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 97)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}

    def save(family):
        model, folder = tiny(family, torch.float64), tmp_path / family
        model.save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
        return model, folder

    return save


@pytest.fixture
def agrees(smollm2, root):
    """``agrees(script)``: a script of demo/ gives the README's relevance, and `attribute`'s as near as float32 lets it.

    Rounding errors of a sum of n terms grow like sqrt(n) u, u the unit roundoff.
    """
    readme = (root / "README.md").read_text("utf-8")
    expected = re.findall(r"^ +\d+ +(\d+)  ('.+') +([+-]\S+) +\S+ %", readme, re.MULTILINE)[:5]
    config, n_tokens = smollm2[0].config, 29
    sums = 5 * config.hidden_size + config.intermediate_size + config.head_dim + n_tokens
    terms = 2 * config.num_hidden_layers * sums  # of a layer, forward and back

    def check(script):
        command = [sys.executable, root / "demo" / script]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        *tokens, gap = done.stdout.splitlines()[-6:]
        for line, (position, token, relevance) in zip(tokens, expected, strict=True):
            found, *where = line.split(maxsplit=2)
            assert where == [position, token] and float(found) == pytest.approx(float(relevance), rel=1e-3)
        assert float(gap.rpartition(" ")[2]) <= math.sqrt(terms) * torch.finfo(torch.float32).eps / 2

    return check
