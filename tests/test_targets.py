"""How strings become token ids, with the real SmolLM2 tokenizer."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lrp_fast.choices import Vocabulary
from lrp_fast.targets import explain, read
from lrp_fast.tokenizer import read as read_tokenizer
from lrp_fast.tokenizer import token_texts


@pytest.fixture(scope="module")
def ask(smollm2):
    model, tokenizer = smollm2

    def call(target, contrast):
        return read(target, contrast, Vocabulary(model.config.vocab_size, read_tokenizer(tokenizer)))

    return call


def test_single_tokens(ask, smollm2):
    _, tokenizer = smollm2
    request = ask(" Sydney", " Canberra")
    assert tokenizer.decode([request.target]) == " Sydney" and tokenizer.decode([request.contrast]) == " Canberra"
    assert request.prefix == () and request.note == ""
    assert ask(" Sydney", 5).contrast == 5 and ask(None, "mean").contrast == "mean"
    assert ask(None, ("top", 3)).contrast == ("top", 3) and ask(None, None).target is None


def test_strings_of_several_tokens_are_compared_where_they_diverge(ask, smollm2):
    _, tokenizer = smollm2
    same, one, other = tokenizer.encode(" 12"), tokenizer.encode(" 123"), tokenizer.encode(" 124")
    assert one[:-1] == other[:-1] == same  # digits are single tokens
    request = ask(" 123", " 124")
    assert (request.prefix, request.target, request.contrast) == (tuple(same), one[-1], other[-1])
    assert "share their first" in request.note and "' 12'" in request.note and "now end the prompt" in request.note


def test_strings_that_diverge_at_once_say_which_token_stands_for_them(ask, smollm2):
    _, tokenizer = smollm2
    request = ask(" Kyrgyzstan", " Paris")
    ids = tokenizer.encode(" Kyrgyzstan")
    assert len(ids) > 1 and request.target == ids[0]
    assert request.note.startswith(
        f"target ' Kyrgyzstan' is {len(ids)} tokens; its first, {tokenizer.decode(ids[:1])!r}"
    )
    assert "contrast" not in request.note
    request = ask(None, " Kyrgyzstan")
    assert request.contrast == ids[0] and request.note.startswith("contrast ' Kyrgyzstan' is")


@pytest.mark.parametrize(
    "target, contrast, message",
    [
        (" 123", None, "target ' 123' is 4 tokens .*, and no contrast says where to look: give a contrast string"),
        (" 123", "mean", "no contrast says where to look"),
        (" 123", ("top", 2), "no contrast says where to look"),
        (" 12", " 123", "target ' 12' and contrast ' 123' never diverge"),
        (" Paris", " Paris", "never diverge"),
        ("", " Paris", "target '' is no token at all"),
    ],
)
def test_what_cannot_be_compared_is_refused(ask, target, contrast, message):
    with pytest.raises(ValueError, match=message):
        ask(target, contrast)


def test_parts_of_a_character_are_spelled_as_the_tokenizer_spells_them(smollm2):
    _, tokenizer = smollm2
    ids = tokenizer.encode("a \U0001f9d1\u200d\U0001f680\n")
    texts, note = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and all(texts) and not note and "\ufffd" not in "".join(texts)
    assert texts[0] == "a" and texts[-1] == "\n"
    assert any(text.startswith("\\x") for text in texts)  # bytes as bytes, not as letters that stand for them


def test_sentencepiece_targets_with_and_without_a_blank():
    words = [("<unk>", 0.0), ("\u2581", -5.0), ("\u2581Sydney", -1.0), ("\u2581Canberra", -1.0)]
    backend = Tokenizer(models.Unigram(words, unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    for target, contrast in ((" Sydney", " Canberra"), ("Sydney", "Canberra")):
        request = read(target, contrast, Vocabulary(10, read_tokenizer(tokenizer)))
        assert (request.prefix, request.target, request.contrast) == ((), 2, 3)
    assert token_texts([2], tokenizer) == ([" Sydney"], "")
    with pytest.raises(ValueError, match=r"contrast ' Perth' holds what the tokenizer does not know, and becomes \["):
        read(" Sydney", " Perth", Vocabulary(10, read_tokenizer(tokenizer)))
    assert read("<unk>", " Sydney", Vocabulary(10, read_tokenizer(tokenizer))).contrast == 2  # asked for by name


def test_special_tokens_include_those_that_only_the_added_tokens_mark(smollm2):
    _, tokenizer = smollm2
    special = read_tokenizer(tokenizer).special_ids
    header = tokenizer.convert_tokens_to_ids("<repo_name>")
    assert header not in tokenizer.all_special_ids and header in special
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in special
    assert tokenizer.encode("a")[0] not in special


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
def test_ranks_are_those_of_a_stable_sort(equal):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, generator=generator)
    logits = logits.round() if equal else logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    request = read(int(order[0, 200]), int(order[0, 100]), Vocabulary(300))
    _, explained = explain(request, logits, [3, 8], Vocabulary(300))
    first, last = explained.terms
    assert (first.target.rank, first.contrast.rank, first.runner_up.id) == (200, 100, order[0, 0])
    assert last.target.rank == order[1].tolist().index(request.target)
    assert [token.id for token in explained.best] == order[1, :10].tolist()
    assert [token.rank for token in explained.best] == list(range(10))
    value, _ = explain(read(None, ("top", 20), Vocabulary(300)), logits, [3, 8], Vocabulary(300))
    ranked = logits.gather(1, order)
    torch.testing.assert_close(value, (ranked[:, 0] - ranked[:, 1:21].mean(1)).sum())
