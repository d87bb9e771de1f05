"""Whatever is handed in as tokenizer=: used as it is meant, or refused before any layer runs; what it lacks is told."""

import pathlib
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer, implementations, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lrp_fast import attribute, between
from lrp_fast.tokenizer import read

WORDS = ["<unk>", "<s>", "</s>", "<pad>", "The", "capital", "of", "Australia", "is", "Sydney", "Canberra"]
PROMPT, IDS = "The capital of Australia is", [4, 5, 6, 7, 8]
UNMARKED = "The tokenizer does not say which of its tokens are special, so that none is marked."


def words(front=""):
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    if front:
        found.post_processor = processors.TemplateProcessing(single=f"{front} $A", special_tokens=[(front, 1)])
    return found


def fast():
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words(), **special)


class Methods:
    """Remote code whose tables are methods, raise errors, or are not there."""

    def encode(self, text, add_special_tokens=True):
        return [1] * add_special_tokens + words().encode(text).ids

    def decode(self, ids, skip_special_tokens=True):
        return words().decode([one for one in ids if one > 2 or not skip_special_tokens])

    def convert_ids_to_tokens(self, ids):
        raise NotImplementedError

    def added_tokens_decoder(self):
        raise NotImplementedError

    def all_special_ids(self):
        return [0, 2]

    bos_token_id = property(lambda self: 1)
    eos_token_id = unk_token = None

    def unk_token_id(self):
        return 0


class NoSwitch:
    """As mistral-common and tiktoken: texts and ids, and no word of special tokens, one of which it always puts."""

    def encode(self, text):
        return [1, *words().encode(text).ids]

    def decode(self, ids):
        return " ".join({one: word for one, word in enumerate(WORDS)}[one] for one in ids)


class Told(NoSwitch):
    def encode(self, s, bos, eos):
        return [1] * bos + words().encode(s).ids + [2] * eos


class Deaf(NoSwitch):
    bos_token_id = 1

    def encode(self, text, **options):
        return super().encode(text)


class Letters:
    """Without tables; whatever it is told, it puts ``front`` and ``back`` around a text."""

    def __init__(self, front=(), back=()):
        self.front, self.back = front, back

    def encode(self, text, **options):
        return [*self.front, *(ord(sign) - 96 for sign in text if "a" <= sign <= "z"), *self.back]

    def decode(self, ids):
        return "".join(chr(one + 96) if one < 60 else "<>" for one in ids)


class Bytes:
    def encode(self, text):
        return words().encode(text).ids

    def decode(self, ids):
        return "\ufffd"

    def decode_single_token_bytes(self, one):
        return [b"\xc3", b"a"][one % 2]


def told(model, prompt, tokenizer, **asked):
    """The result, or the error with no layer run by then."""
    steps = []
    try:
        return attribute(model, prompt, tokenizer=tokenizer, progress=lambda *step: steps.append(step), **asked)
    except (ValueError, TypeError):
        assert steps == []
        raise


USED = {
    "transformers": (fast(), [], 5 * [False], ""),
    "a processor": (SimpleNamespace(tokenizer=fast(), chat_template=None), [], 5 * [False], ""),
    "a pipeline of one": (SimpleNamespace(tokenizer=SimpleNamespace(tokenizer=fast())), [], 5 * [False], ""),
    "tokenizers": (words(), [], 5 * [False], ""),
    "tokenizers with a template": (words("<s>"), [1], [True] + 5 * [False], ""),
    "methods": (Methods(), [1], [True] + 5 * [False], ""),
    "no switch": (NoSwitch(), [1], [True] + 5 * [False], UNMARKED.replace("none is", "only those are")[:-1]),
    "other switches": (Told(), [1], [True] + 5 * [False], UNMARKED.replace("none is", "only those are")[:-1]),
    "a switch that does nothing": (Deaf(), [1], [True] + 5 * [False], ""),
    "a function's like": (lambda text: {"input_ids": torch.tensor([words().encode(text).ids])}, [], None, UNMARKED),
}


@pytest.mark.parametrize("name", USED)
def test_used_as_it_is_meant(name, tiny):
    tokenizer, front, special, note = USED[name]
    result = told(tiny("llama"), PROMPT, tokenizer, target="Sydney", contrast="Canberra")
    assert result.input_ids.tolist() == [*front, *IDS]
    (term,) = result.explained.terms
    assert (term.target.id, term.contrast.id) == (9, 10)
    assert result.special == special and note in result.explained.note
    if "function" not in name:
        assert result.tokens == ["<s>", *PROMPT.split()][1 - len(front) :] and term.target.text == "Sydney"
    again = told(tiny("llama"), result.input_ids, tokenizer, target=9, contrast=10)
    assert torch.equal(again.layers, result.layers) and again.explained == result.explained


@pytest.mark.parametrize("front", [(), (60,), (60, 61)])
@pytest.mark.parametrize("back", [(), (60,), (61,)])
@pytest.mark.parametrize("called", [False, True])
def test_what_it_always_puts_around_a_text_is_no_part_of_a_target(front, back, called, tiny):
    own = Letters(front, back)
    tokenizer = (lambda text, **options: {"input_ids": [own.encode(text)]}) if called else own
    result = told(tiny("llama"), "abc", tokenizer, target="d", contrast="e")
    (term,) = result.explained.terms
    assert (term.target.id, term.contrast.id) == (4, 5) and "target" not in result.explained.note
    assert result.input_ids.tolist() == [*front, 1, 2, 3, *back]
    assert ("The tokenizer ends the prompt" in result.explained.note) == bool(back)
    assert read(tokenizer).added == ([*front], [*back])


def test_what_an_object_cannot_say_is_left_out_with_a_note(tiny):
    model = tiny("llama")
    encoder = told(model, PROMPT, SimpleNamespace(encode=NoSwitch().encode))
    assert encoder.tokens is None and encoder.explained.best[0].text is None
    assert "cannot turn ids into text, so that the result carries no token texts." in encoder.explained.note
    decoder = SimpleNamespace(decode=NoSwitch().decode)
    found = told(model, [4, 30, 5, 40], decoder, target=50, contrast=9)
    assert found.tokens == ["The", "<30>", "capital", "<40>"] and found.special is None
    assert found.explained.note == f"The tokenizer has no text for 2 ids of the prompt, 30 first. {UNMARKED}"
    (term,) = found.explained.terms
    assert (term.target.text, term.contrast.text) == (None, "Sydney")
    with pytest.raises(TypeError, match=r"input_ids is a string, and tokenizer= cannot encode one \(it is a SimpleN"):
        told(model, PROMPT, decoder)
    assert told(model, PROMPT, Bytes()).tokens == ["a" if one % 2 else "\\xc3" for one in IDS]


def test_rows_of_the_head_beyond_the_vocabulary_have_their_number_for_a_text(tiny):
    result = told(tiny("llama"), [4, 90], fast(), target=95)
    assert result.tokens == ["The", "<90>"] and result.explained.terms[0].target.text == "<95>"
    assert result.explained.note == "The tokenizer has no text for 1 id of the prompt, 90 first."


@pytest.mark.parametrize("prompt", [PROMPT, IDS])
@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("my/model", r"^tokenizer is a name: load it first, with AutoTokenizer.from_pretrained\('my/model'\)$"),
        (pathlib.Path("a"), r"^tokenizer is a name: load it first"),
        (PreTrainedTokenizerFast, r"is the class \w+: hand in one of it, \w+.from_pretrained\(...\)$"),
        (NoSwitch, r"^tokenizer is the class NoSwitch: hand in one of it, NoSwitch\(...\)$"),
        (object(), "^tokenizer must be a tokenizer, not object: load one with AutoTokenizer.from_pretrained"),
        (SimpleNamespace(tokenizer=None), "^tokenizer must be a tokenizer, not SimpleNamespace: load one"),
        (torch.nn.Linear(1, 1), "^tokenizer must be a tokenizer, not Linear: load one"),
        ({"a": 1}, "^tokenizer must be a tokenizer, not dict: load one"),
    ],
)
def test_what_is_no_tokenizer(prompt, tokenizer, message, tiny):
    with pytest.raises(TypeError, match=message):
        told(tiny("llama"), prompt, tokenizer)
    with pytest.raises(TypeError, match=message):
        between(tiny("llama"), prompt, 0, 1, [0], tokenizer=tokenizer)


def test_a_name_is_loaded_as_the_refusal_says(tiny, tmp_path):
    fast().save_pretrained(tmp_path)
    assert told(tiny("llama"), PROMPT, transformers.AutoTokenizer.from_pretrained(tmp_path)).input_ids.tolist() == IDS


def test_an_encode_that_fails(tiny):
    def broken(text, **options):
        raise RuntimeError("no\nway")

    for tokenizer, error, message in (
        (SimpleNamespace(encode=broken), ValueError, r"cannot encode input_ids \(RuntimeError: no\): hand in"),
        (SimpleNamespace(encode=str.split), TypeError, "the tokenizer makes no ids of input_ids, but"),
    ):
        with pytest.raises(error, match=message):
            told(tiny("llama"), PROMPT, tokenizer)
        told(tiny("llama"), IDS, tokenizer)  # as the refusal says
    with pytest.raises(ValueError, match="makes token 9 of the prompt, outside the model's vocabulary, 0 to 8: giv"):
        told(tiny("llama", vocab_size=9), "is Sydney", fast())
    with pytest.raises(ValueError, match="target 'Sydney' becomes token 9, outside the model's vocabulary, 0 to 8"):
        told(tiny("llama", vocab_size=9), "The capital", fast(), target="Sydney")


@pytest.mark.parametrize("tokenizer", [words(), NoSwitch(), Methods(), fast()], ids=lambda one: type(one).__name__)
def test_a_target_that_it_does_not_know_is_no_token(tokenizer, tiny):
    with pytest.raises(ValueError, match=r"'Perth' holds what the tokenizer does not know, and becomes \['<unk>'\]"):
        told(tiny("llama"), PROMPT, tokenizer, target="Perth")


def test_the_unknown_token_of_a_unigram_model_is_found():
    pieces = [("\u2581", -5.0), ("The", -1.0), ("<unk>", 0.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=2))
    assert read(unigram).unknown == (2, "<unk>")
    assert read(transformers.ByT5Tokenizer()).unknown[0] == 2
    assert read(Tokenizer(models.BPE({"a": 0}, []))).unknown is None


def test_what_cuts_or_pads_by_its_own_settings_does_not_here(tiny):
    inner = words()
    inner.enable_truncation(2)
    inner.enable_padding(length=9, pad_id=3, pad_token="<pad>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", model_max_length=3)
    for tokenizer in (inner, implementations.BaseTokenizer(inner), wrapped):
        assert told(tiny("llama"), PROMPT, tokenizer).input_ids.tolist() == IDS
    assert inner.truncation["max_length"] == 2 and inner.padding["length"] == 9  # it is the caller's
