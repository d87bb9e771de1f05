"""A tiny model directory, written here, and the command line on it."""

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lrp_fast.cli import main

WORDS = ["<s>", "[UNK]", *["the", "capital", "of", "australia", "is", "sydney", "canberra", "new", "zealand"]]


@pytest.fixture(scope="session")
def directory(tmp_path_factory, tiny):
    """A tiny Llama with a tokenizer of ten words."""
    folder = tmp_path_factory.mktemp("model")
    tiny("llama", vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]").save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def run(directory, tmp_path, capsys, monkeypatch):
    """``run(*arguments)`` in an empty folder: exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=directory, command="attribute"):
        capsys.readouterr()  # what transformers said when it saved something
        try:
            status = main([command, model, *arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
