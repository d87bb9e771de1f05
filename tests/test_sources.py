"""Sources: sums over named spans, chat turns and a splitter's pieces; in files, tables, pages and graphs."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import lrp_fast
from lrp_fast import GraphSpec, attribute
from lrp_fast.report.html import _page_data
from lrp_fast.report.record import as_json
from lrp_fast.report.table import table
from tests.test_prompt import ANSWER, PARTS, STRINGS, TEXT, USER, make

SPANS = {"a": (0, 4), "b": [(6, 9), (20, 23)], "c": [5, 6]}
GROUPS = [0] * 4 + [3, 2] + [1] * 3 + [3] * 11 + [1] * 3


def words_of(result):
    return {name: [result.tokens[i] for i in result.sources.positions(name)] for name in result.sources.names}


# ---- sums


def test_sums_over_sources_are_sums_over_tokens(family, tiny, ids):
    result = attribute(tiny(family, torch.float64), ids, 3, 5, sources=SPANS)
    found, layers = result.sources, result.layers
    assert found.names == ["a", "b", "c", "(rest)"] and found.groups.tolist() == GROUPS
    for i, name in enumerate(found.names):
        mine = [at for at, group in enumerate(GROUPS) if group == i]
        assert found.positions(name) == mine
        assert (found.relevance[:, i] - layers[:, mine].sum(-1)).abs().max() <= 1e-12 * layers.abs().max()
        assert (found.magnitude[:, i] - layers[:, mine].abs().sum(-1)).abs().max() <= 1e-12 * layers.abs().max()
    assert (found.relevance.sum(-1) - layers.sum(-1)).abs().max() <= 1e-12 * layers.abs().sum(-1).max()
    assert (found.magnitude.sum(-1) - layers.abs().sum(-1)).abs().max() <= 1e-12 * layers.abs().sum(-1).max()


def test_a_range_is_its_positions(tiny, ids):
    model = tiny("llama")
    for given in (range(1, 3), [range(1, 3)], range(1, 4), [range(1, 3), range(5, 8)], [(0, 1), range(5, 7)]):
        parts = [given] if isinstance(given, range) else [range(*one) if one == (0, 1) else one for one in given]
        expected = [position for one in parts for position in one]
        assert attribute(model, ids, sources={"x": given}).sources.positions("x") == expected
    for given in (np.array([1, 4]), torch.tensor([1, 4]), [1, 4], (np.int32(1), 4)):
        assert attribute(model, ids, sources={"x": given}).sources.positions("x") == [1, 2, 3]


def test_the_strongest_come_first(tiny, ids):
    found = attribute(tiny("llama"), ids, sources=SPANS).sources
    found = replace(found, relevance=torch.tensor([[1.0, -3.0, 0.0, 1.0], [0.0, 0.0, 9.0, 0.0]]).double())
    assert [name for name, *_ in found.top()] == ["b", "a", "(rest)", "c"]
    assert found.top(1, layer=1) == [("c", 9.0, float(found.magnitude[1, 2]))]
    with pytest.raises(ValueError, match=r"there is no source 'x': they are 'a', 'b', 'c', '\(rest\)'"):
        found.positions("x")
    assert found.top(0) == [] and len(found.top(np.int64(9), layer=-2)) == 4
    with pytest.raises(ValueError, match="k must be 0 or more sources, not -1"):
        found.top(-1)
    for wrong in (1.5, "2", True, None):
        with pytest.raises(TypeError, match=f"k must be a whole number, not {wrong!r}"):
            found.top(wrong)
        with pytest.raises(TypeError, match=f"layer must be a whole number, not {wrong!r}"):
            found.top(layer=wrong)
    for wrong in (9, -3):
        with pytest.raises(IndexError, match=f"there is no layer {wrong}: these are 2, 0 to 1"):
            found.top(layer=wrong)


def test_the_graph_between_sources(tiny, ids):
    result = attribute(tiny("qwen3", torch.float64), ids, 3, 5, graph=GraphSpec(topk=23), sources=SPANS)
    grouped = result.sources.graph(result.graph)
    assert grouped.tokens == result.sources.names and grouped.num_tokens == 4
    assert (grouped.nodes - result.sources.relevance).abs().max() <= 1e-12 * result.layers.abs().max()
    one_hot = torch.nn.functional.one_hot(torch.tensor(GROUPS)).double()
    for layer in range(3):
        sums = one_hot.T @ result.graph.dense(layer) @ one_hot
        assert (grouped.dense(layer) - sums).abs().max() <= 1e-12 * result.graph.dense(layer).abs().sum()
        # Every edge is kept: what leaves a source is its relevance.
        assert (grouped.dense(layer).sum(0) - result.sources.relevance[layer]).abs().max() <= 1e-10


def test_later_is_the_same(tiny, ids):
    model = tiny("llama")
    first, second = attribute(model, ids, target=[3, 5], sources=SPANS)
    for one in (first, second):
        bare = replace(one, sources=None)
        later = bare.by_source(SPANS)
        assert bare.sources is None and later.sources.names == one.sources.names
        assert torch.equal(later.sources.relevance, one.sources.relevance)
    assert not torch.equal(first.sources.relevance, second.sources.relevance)
    whole = attribute(model, ids, sources={"all": (0, 23)}).sources
    assert whole.names == ["all"] and not whole.groups.any()


# ---- text


def test_characters_and_texts(tiny):
    model, tokenizer = tiny("llama"), make()
    spans = {"x": "capital of", "y": ("chars", 0, 3), "z": [("chars", 15, 24)]}
    result = attribute(model, TEXT, tokenizer=tokenizer, sources=spans)
    expected = {"x": ["capital", "of"], "y": ["The"], "z": ["Australia"], "(rest)": ["<s>", "is"]}
    assert words_of(result) == expected
    bare = replace(result, sources=None)
    assert words_of(bare.by_source(spans, TEXT, tokenizer)) == expected
    # Without the prompt, the text is that of its tokens: <s>ThecapitalofAustraliais here.
    joined = {"x": ["capital", "of"], "(rest)": ["<s>", "The", "Australia", "is"]}
    assert words_of(bare.by_source({"x": "capitalof"})) == joined
    # With a tokenizer, it is what that makes of the ids: <s> The capital of Australia is.
    for one in (
        attribute(model, result.input_ids, tokenizer=tokenizer, sources={"x": ("chars", 7, 18)}),
        bare.by_source({"x": "capital of"}, tokenizer=tokenizer),
        bare.by_source({"x": "capital of"}, result.input_ids, tokenizer),
    ):
        assert one.sources.groups.tolist() == [1, 1, 0, 0, 1, 1]


def byte_level():
    """A tokenizer of single bytes, whose tokens may be parts of characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


@pytest.mark.parametrize("kind", ["tokenizers", "fast", "slow"])
def test_a_character_of_several_tokens(tiny, kind):
    backend = byte_level()
    tokenizer = {
        "tokenizers": lambda: backend, "fast": lambda: PreTrainedTokenizerFast(tokenizer_object=backend),
        "slow": ByT5Tokenizer,
    }[kind]()  # fmt: skip
    model = tiny("llama", vocab_size=400)
    if kind == "slow":  # which does not say where its tokens stand, nor are they characters
        text = "ab cd"
        result = attribute(model, text, tokenizer=tokenizer, sources={"x": "cd"})
        assert result.sources.groups.tolist() == [1, 1, 1, 0, 0, 1]
        with pytest.raises(ValueError, match="the tokenizer does not tell where its tokens stand in the text"):
            attribute(model, "é cd", tokenizer=tokenizer, sources={"x": "cd"})
        return
    sources = {"x": "\U0001f642", "y": ("chars", 0, 2)}
    result = attribute(model, "a\u00e9 \U0001f642b", tokenizer=tokenizer, sources=sources)
    assert len(result.input_ids) == 9 and result.sources.groups.tolist() == [1] * 3 + [2] + [0] * 4 + [2]


SENTENCES = "The capital . It is"


def split(text):
    return re.split(r"(?<=\.) ", text)


@pytest.mark.parametrize(
    "asked",
    [
        {"answer": "Canberra is Sydney"},
        {"answer": "Canberra is Sydney", "by_token": True},
        {"answer": "is Canberra", "contrast": "is Sydney"},
        {"target": "is Canberra", "contrast": "is Sydney"},
        {"target": ["Canberra", "Sydney"]},
    ],
    ids=["answer", "by token", "two answers", "common prefix", "targets"],
)
def test_later_is_the_same_with_an_answer_behind(tiny, tmp_path, asked):
    model, tokenizer = tiny("llama"), make()
    asked = asked | {"tokenizer": tokenizer}
    ids = tokenizer(SENTENCES).input_ids
    for prompt in (SENTENCES, ids):
        given = split if prompt is SENTENCES else {"x": "is", "y": ("chars", 4, 15)}
        results = attribute(model, prompt, sources=given, **asked)
        for one in results if isinstance(results, list) else [results]:
            assert one.prompt_tokens == len(ids) == 6
            one.save(tmp_path / "case")
            bare = replace(lrp_fast.load(tmp_path / "case"), sources=None)
            later = [bare.by_source(given, prompt, tokenizer)]
            later += [bare.by_source(given, tokenizer=tokenizer)] if prompt is ids else []
            for again in later:
                assert again.sources.names == one.sources.names
                assert torch.equal(again.sources.groups, one.sources.groups)
                assert torch.equal(again.sources.relevance, one.sources.relevance)
            joined = bare.by_source(lambda text: [text]).sources  # of the prompt's own tokens
            assert joined.positions(joined.names[0]) == [*range(6)]


def test_later_is_the_same_without_the_prompt(tiny):
    given = (tiny("llama", vocab_size=400), "The capital. It is")
    result = attribute(*given, answer=" Canberra. Not Sydney", tokenizer=byte_level(), sources=split)
    assert result.sources.names == ["0: The capital.", "1: It is", "(rest)"]
    for later in (result.by_source(split), result.by_source(split, tokenizer=byte_level())):
        assert later.sources.names == result.sources.names
        assert torch.equal(later.sources.groups, result.sources.groups)


def test_the_prompt_given_later_is_the_whole_prompt(tiny, tmp_path):
    model, tokenizer = tiny("llama"), make()
    plain = attribute(model, SENTENCES, tokenizer=tokenizer)
    for wrong in ("The capital", SENTENCES + " is", "The"):
        with pytest.raises(ValueError, match="prompt has other tokens than this result: give the whole that was expl"):
            plain.by_source(split, wrong, tokenizer)
    answered = attribute(model, SENTENCES, answer="Canberra is", tokenizer=tokenizer)
    for wrong in ("The capital", SENTENCES + " Canberra", SENTENCES + " Canberra is"):
        with pytest.raises(ValueError, match="prompt has other tokens .* without what stands behind it"):
            answered.by_source(split, wrong, tokenizer)
    # A file from before the prompt's length was kept.
    old = replace(answered, prompt_tokens=None)
    old.save(tmp_path / "case")
    about, tensors = opened(tmp_path / "case")
    del about["prompt_tokens"]
    save_file(tensors, tmp_path / "case", metadata={"lrp_fast": json.dumps(about)})
    old = lrp_fast.load(tmp_path / "case")
    assert old.prompt_tokens is None and old.by_source({"x": (0, 2)}).sources.positions("x") == [0, 1]
    for given in (split, {"x": "The"}, {"x": ("chars", 0, 5)}):
        with pytest.raises(ValueError, match="this result does not say where its prompt ends: give prompt="):
            old.by_source(given, tokenizer=tokenizer)
    with pytest.raises(ValueError, match='sources "turns" are those of a chat'):
        old.by_source("turns")
    again = old.by_source(split, SENTENCES, tokenizer).sources
    assert torch.equal(again.groups, answered.by_source(split, SENTENCES, tokenizer).sources.groups)
    with pytest.raises(ValueError, match="prompt has other tokens .*: give the whole that was explained$"):
        old.by_source(split, "The capital", tokenizer)
    token = attribute(model, SENTENCES, answer="Canberra is", by_token=True, tokenizer=tokenizer)[0]
    with pytest.raises(ValueError, match="prompt has other tokens"):  # nothing tells that it is the prompt
        replace(token, prompt_tokens=None).by_source(split, SENTENCES, tokenizer)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (0, "prompt_tokens must be 1 to the 6 tokens, not 0"),
        (7, "prompt_tokens must be 1 to the 6 tokens, not 7"),
        (True, "prompt_tokens must be a whole number, or nothing, not bool"),
        (2.0, "prompt_tokens must be a whole number, or nothing, not float"),
        ("6", "prompt_tokens must be a whole number, or nothing, not str"),
    ],
)
def test_a_length_edited_by_hand(saved, tmp_path, wrong, message):
    saved.save(tmp_path / "case")
    about, tensors = opened(tmp_path / "case")
    assert about["prompt_tokens"] == 6
    save_file(tensors, tmp_path / "case", metadata={"lrp_fast": json.dumps(about | {"prompt_tokens": wrong})})
    with pytest.raises(ValueError, match=message):
        lrp_fast.load(tmp_path / "case")
    with pytest.raises((TypeError, ValueError), match=message):
        replace(saved, prompt_tokens=wrong).save(tmp_path / "other")


def merged():
    """Byte-level, with tokens that hold a part of a character and whole ones besides."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "\u0120"), ("d\u0120", "\u00f0"), ("d\u0120\u00f0", "\u0141"), ("\u0125", "\u0120")]
    vocab = {sign: i for i, sign in enumerate([*signs, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def fallback():
    """SentencePiece's form with byte fallback, whose first blank is its own."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyzHTCA."]
    vocab = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


END = "</s>"
EMOJI = "He said \U0001f643 to her. Canberra is the capital of Australia"


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("kind", [byte_level, merged, fallback])
def test_ids_of_characters_of_several_tokens(tiny, kind, canonical):
    backend, at = kind(), EMOJI.find("Canberra")
    model, tokenizer = tiny("llama", vocab_size=400), PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = backend.encode(EMOJI).ids
    if kind is merged:
        assert [backend.id_to_token(one) for one in ids[6:10]] == ["d\u0120\u00f0\u0141", "\u013b", "\u0125\u0120", "t"]
        if not canonical:  # as nobody would encode it
            ids[6:7] = [backend.token_to_id(one) for one in ("d\u0120", "\u00f0", "\u0141")]
    elif not canonical:
        backend.add_special_tokens([END])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        ids = [*ids, backend.token_to_id(END)]
        if kind is fallback:
            ids[2] = backend.token_to_id("<0x65>")  # an e
            assert backend.decode(ids, skip_special_tokens=False) == EMOJI + END
    result = attribute(model, ids, tokenizer=tokenizer)

    def split(text):
        assert text.startswith(EMOJI) and text[len(EMOJI) :] in ("", END)
        return re.split(r"(?<=\.) ", text)

    for given in ({"x": ("chars", at, at + 8)}, {"x": "Canberra"}, {"x": "\U0001f643"}, split):
        told = attribute(model, ids, tokenizer=tokenizer, sources=given).sources
        later = result.by_source(given, tokenizer=backend).sources
        assert torch.equal(told.groups, later.groups)
        texts = [backend.decode([ids[i] for i in told.positions(name)]) for name in told.names]
        if callable(given):
            assert [text.strip() for text in texts[:2]] == ["He said \U0001f643 to her.", EMOJI[at:]]
        elif given["x"] == "\U0001f643":
            found = [backend.id_to_token(ids[i]) for i in told.positions("x")]
            # The token that begins with "d" belongs to the word before, and the one that ends in a blank does not.
            merged_ones = ["\u013b", "\u0125\u0120"] if canonical else ["\u00f0", "\u0141", "\u013b", "\u0125\u0120"]
            assert (found == merged_ones) if kind is merged else (len(found) == 4)
        else:
            assert texts[0].strip() == "Canberra"
        with pytest.raises(ValueError, match="is a part of a character, .*: give prompt= and tokenizer="):
            result.by_source(given)
    assert result.by_source({"x": (0, 5)}).sources.positions("x") == [*range(5)]


def test_ids_whose_tokens_are_spelled_otherwise_than_the_text(tiny):
    words = ["[UNK]", "he", "said", "##berra", "can", "is", "."]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    ids = [1, 2, 4, 3, 5, 6]
    assert backend.decode(ids) == "he said canberra is ."
    found = attribute(tiny("llama"), ids, tokenizer=backend, sources={"x": "canberra", "y": ("chars", 17, 19)})
    assert found.sources.positions("x") == [2, 3] and found.sources.positions("y") == [4]


def test_half_of_a_character_has_no_place(tiny):
    backend = byte_level()
    ids = backend.encode(EMOJI).ids[:10]
    with pytest.raises(ValueError, match=r"does not tell where the prompt's tokens stand .*\(prompt= of by_source\)"):
        attribute(tiny("llama", vocab_size=400), ids, tokenizer=backend, sources={"x": "He"})
    found = attribute(tiny("llama", vocab_size=400), ids, tokenizer=backend, sources={"x": (0, 2)}).sources
    assert found.positions("x") == [0, 1]


def test_a_token_belongs_where_its_first_character_that_is_no_blank_stands(tiny):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, " is": 1, "it": 2, ".": 3, " ": 4}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\.| "), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    sources = {"x": ("chars", 3, 6), "y": ("chars", 6, 7)}
    result = attribute(tiny("llama"), "it is. ", tokenizer=tokenizer, sources=sources)
    assert result.input_ids.tolist() == [2, 1, 3, 4]
    assert result.sources.groups.tolist() == [2, 0, 0, 1]
    with pytest.raises(ValueError, match="source 'x' holds no token: no token's first character"):
        result.by_source({"x": ("chars", 4, 5)}, "it is. ", tokenizer)


def test_what_target_and_contrast_share_is_the_rest(tiny):
    result = attribute(tiny("llama"), TEXT, "is Sydney", "is Canberra", tokenizer=make(), sources={"x": "is"})
    assert result.tokens[-2:] == ["is", "is"] and result.sources.positions("x") == [5]
    given = (tiny("llama"), result.input_ids[:-1], "is Sydney", "is Canberra")
    assert attribute(*given, tokenizer=make(), sources={"x": "lia is"}).sources.groups.tolist() == [1] * 5 + [0, 1]
    with pytest.raises(ValueError, match="the text of source 'x' does not stand in the prompt"):
        attribute(*given, tokenizer=make(), sources={"x": "lia is is"})


def test_a_splitter(tiny):
    model, text = tiny("llama"), "The capital is Canberra . The is Sydney"
    for split in (
        lambda text: re.split(r"(?<=\.) ", text),
        lambda text: [(0, 25), (26, len(text))],
        lambda text: iter(["The capital is Canberra .", " ", "The is Sydney"]),
    ):
        result = attribute(model, text, tokenizer=make(), sources=split)
        names = result.sources.names
        assert [name.split(": ")[1] for name in names[:2]] == ["The capital is Canberra .", "The is Sydney"]
        first = ["The", "capital", "is", "Canberra", "<unk>"]
        assert list(words_of(result).values()) == [first, ["The", "is", "Sydney"], ["<s>"]]
    long = attribute(model, "The " * 30, tokenizer=make(), sources=lambda text: [text])
    assert long.sources.names[0] == "0: " + ("The " * 10) + "..."


@pytest.mark.parametrize(
    "template", [STRINGS, PARTS.replace("c['text']", "c['text'] + ' '")], ids=["strings", "parts"]
)
def test_turns(tiny, template):
    tokenizer = make(template=template)
    chat = [{"role": "system", "content": "is user"}, USER, ANSWER, {"role": "assistant", "content": ""}, USER]
    result = attribute(tiny("llama"), chat, tokenizer=tokenizer, sources="turns")
    found = words_of(result)
    rest = found.pop("(rest)")
    plain = TEXT.split()
    assert found == {
        "message 0, system": ["is", "user"], "message 1, user": plain, "message 2, assistant": ["Sydney", "is"],
        "message 4, user": plain,
    }  # fmt: skip
    assert {"<s>", "user", "system", ":"} <= set(rest) <= {"<s>", "</s>", "user", "system", "assistant", ":"}
    assert words_of(replace(result, sources=None).by_source("turns", chat, tokenizer)) == found | {"(rest)": rest}


def test_turns_of_several_parts_and_of_an_answer_that_goes_on(tiny):
    parts = [{"type": "text", "text": "The capital "}, {"type": "text", "text": "of Australia is "}]
    for chat in ([USER | {"content": parts}], [USER | {"content": parts}, ANSWER]):
        found = words_of(attribute(tiny("llama"), chat, tokenizer=make(template=STRINGS), sources="turns"))
        assert found["message 0, user"] == TEXT.split()
        assert len(chat) == 1 or found["message 1, assistant"] == ["Sydney", "is"]


def test_turns_that_cannot_be_told(tiny):
    model = tiny("llama")
    upper = STRINGS.replace("m['content']", "m['content'] | lower")
    twice = STRINGS.replace("m['content']", "m['content'] + ' ' + m['content']")
    other = STRINGS.replace("m['role']", "m['role'] + (' is' if 'capital' in m['content'] else '')")
    for template in (upper, twice, other):
        with pytest.raises(ValueError, match="the chat template does not write the messages' texts as they are"):
            attribute(model, [USER], tokenizer=make(template=template), sources="turns")
    with pytest.raises(ValueError, match='sources "turns" are those of a chat: hand in messages'):
        attribute(model, TEXT, tokenizer=make(), sources="turns")


# ---- what is refused, before a layer runs


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        (3, TypeError, 'sources must be a dict of spans, "turns", "images" or a splitter, not int'),
        ([(0, 3)], TypeError, "sources must be a dict of spans"),
        ("words", ValueError, "sources 'words' is not known"),
        ({}, ValueError, "sources is an empty dict"),
        ({3: (0, 1)}, TypeError, "sources must have strings for names, not 3"),
        ({"": (0, 1)}, TypeError, "sources must have strings for names, not ''"),
        ({"(rest)": (0, 1)}, ValueError, r"'\(rest\)' is what the tokens in no source are called"),
        ({"a": (0, 3), "b": (2, 4)}, ValueError, "sources 'a' and 'b' overlap at position 2: a token belongs to one"),
        ({"a": [(0, 3), (2, 4)]}, ValueError, "sources 'a' and 'a' overlap at position 2"),
        ({"a": (0, 3), "b": "The"}, ValueError, "sources 'a' and 'b' overlap at position 1"),
        ({"a": (0, 7)}, ValueError, r"source 'a' is \(0, 7\), which is no span of the prompt's 6 tokens"),
        ({"a": (-2, 3)}, ValueError, r"source 'a' is \(-2, 3\), which is no span"),
        ({"a": (3, 3)}, ValueError, r"source 'a' is \(3, 3\), which is no span"),
        ({"a": ("chars", 0, 99)}, ValueError, r"is no span of the prompt's 27 characters"),
        ({"a": ("words", 0, 9)}, ValueError, "the text of source 'a' does not stand in the prompt"),
        ({"a": (0.0, 2)}, TypeError, r"source 'a' must be \(start, end\) of tokens, \(\"chars\""),
        ({"a": 3}, TypeError, r"source 'a' must be \(start, end\) of tokens"),
        ({"a": {0, 2}}, TypeError, r"source 'a' must be .*, or a list of such, not \{0, 2\}"),
        ({"a": {0: 1, 2: 3}}, TypeError, r"source 'a' must be .*, or a list of such, not \{0: 1, 2: 3\}"),
        ({"a": b"\x00\x02"}, TypeError, "source 'a' must be .*, a range of positions, or the text itself"),
        ({"a": (False, True)}, TypeError, r"source 'a' must be .*, or a list of such, not \(False, True\)"),
        ({"a": ("chars", False, 3)}, TypeError, "source 'a' must be "),
        ({"a": [(0, 1), {2, 3}]}, TypeError, r"source 'a' must be .*, not \{2, 3\}"),
        ({"a": torch.tensor([True, True])}, TypeError, "source 'a' must be "),
        ({"a": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "source 'a' must be "),
        ({"a": range(0, 4, 2)}, ValueError, r"source 'a' is range\(0, 4, 2\), and a source's range has step 1"),
        ({"a": range(2, 2)}, ValueError, r"source 'a' is \(2, 2\), which is no span"),
        ({"a": range(3, 9)}, ValueError, r"source 'a' is \(3, 9\), which is no span of the prompt's 6 tokens"),
        ({"a": []}, TypeError, r"source 'a' must be \(start, end\) of tokens"),
        ({"a": [(0, 1), None]}, TypeError, r"source 'a' must be \(start, end\) of tokens"),
        ({"a": {"start": 0}}, TypeError, r"source 'a' must be \(start, end\) of tokens"),
        ({"a": "Paris"}, ValueError, "the text of source 'a' does not stand in the prompt: give it as it stands there"),
        ({"a": ""}, ValueError, "the text of source 'a' does not stand in the prompt"),
        ({"a": "i"}, ValueError, "the text of source 'a' stands in the prompt twice"),
        (lambda text: ["x"], ValueError, "the splitter gave 'x', which does not stand in the text behind the last"),
        (lambda text: ["is", "The"], ValueError, "the splitter gave 'The', which does not stand in the text behind"),
        (lambda text: [3], TypeError, r"the splitter must give strings or \(start, end\), not 3"),
        (lambda text: [(0, 99)], ValueError, r"the splitter gave \(0, 99\), no span of the text's 27 characters"),
        (lambda text: [], ValueError, "sources hold no token of the prompt"),
        (lambda text: [(0, 5), (0, 9)], ValueError, r"gave \(0, 9\), which begins before the last piece's end, 5"),
        (lambda text: [(3, 9), (0, 2)], ValueError, r"gave \(0, 2\), which begins before the last piece's end, 9"),
        (lambda text: ["capital", (0, 3)], ValueError, r"gave \(0, 3\), which begins before the last piece's end, 11"),
        (lambda text: None, TypeError, r"splitter must give a list of strings, or of \(start, end\) .* not NoneType"),
        (lambda text: text, TypeError, "the splitter must give a list of strings.* not str"),
        (lambda text: 3, TypeError, "the splitter must give a list of strings.* not int"),
        (lambda text: {"The", "is"}, TypeError, "the splitter must give a list of strings.* not set"),
        (lambda text: {"a": (0, 3)}, TypeError, "the splitter must give a list of strings.* not dict"),
        (lambda text: [{0, 3}], TypeError, r"the splitter must give strings or \(start, end\), not \{0, 3\}"),
        (lambda text: [(False, True)], TypeError, r"the splitter must give strings or \(start, end\), not \(False"),
    ],
)
def test_what_is_refused(tiny, sources, error, message):
    model, ran = tiny("llama"), []
    model.model.layers[0].register_forward_pre_hook(lambda *_: ran.append(None))
    with pytest.raises(error, match=message):
        attribute(model, TEXT, tokenizer=make(), sources=sources)
    assert not ran


def test_texts_without_text(tiny, ids):
    model = tiny("llama")
    with pytest.raises(ValueError, match="sources are told by text, and the tokens have none: give tokenizer="):
        attribute(model, ids, sources={"a": "x"})
    result = attribute(model, ids)
    with pytest.raises(ValueError, match="prompt has other tokens than this result"):
        result.by_source(SPANS, ids.flip(1))


# ---- files


@pytest.fixture(scope="module")
def saved(tiny):
    result = attribute(tiny("llama"), [3, 1, 4, 1, 5, 9], target=3, contrast=5)
    return replace(result, tokens=[*"abcdef"]).by_source({"x": (0, 2), "y\ud800": (3, 5)})


def opened(path):
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["lrp_fast"]), load_file(path)


def test_files_keep_them(saved, tmp_path):
    saved.save(tmp_path / "case")
    found = lrp_fast.load(tmp_path / "case").sources
    assert found.names == saved.sources.names == ["x", "y\ud800", "(rest)"]
    for name in ("groups", "relevance", "magnitude"):
        assert torch.equal(getattr(found, name), getattr(saved.sources, name))
    replace(saved, sources=None).save(tmp_path / "case")
    assert lrp_fast.load(tmp_path / "case").sources is None
    about, tensors = opened(tmp_path / "case")
    assert "sources" not in about and "source_of" not in tensors  # as before there were any


@pytest.mark.parametrize(
    ("names", "source_of", "message"),
    [
        (None, None, "it holds no 'source_of'"),
        (..., None, "it holds no 'source_of'"),
        ("xyz", ..., "sources must be a list of strings"),
        (["x", "y", 3], ..., "sources must be a list of strings"),
        (["x", "x", "z"], ..., "sources must not name a source twice"),
        (["x", "y"], ..., "source_of must number each of the 2 sources, from 0 on, and nothing else"),
        ([*"wxyz"], ..., "source_of must number each of the 4 sources"),
        ([], ..., "source_of must number each of the 0 sources"),
        (..., lambda t: t.int(), "source_of must be int64, not torch.int32"),
        (..., lambda t: t.double(), "source_of must be int64, not torch.float64"),
        (..., lambda t: t - 1, "source_of must number each of the 3 sources"),
        (..., lambda t: t * 2, "source_of must number each of the 3 sources"),
        (..., lambda t: t * 2**60, "source_of must number each of the 3 sources"),
        (..., lambda t: t * 0, "source_of must number each of the 3 sources"),
        (..., lambda t: t[:5].clone(), r"source_of must be \(6,\), one a token, not \(5,\)"),
        (..., lambda t: t[None], r"source_of must be \(6,\), one a token, not \(1, 6\)"),
    ],
)
def test_files_edited_by_hand(saved, tmp_path, names, source_of, message):
    saved.save(tmp_path / "case")
    about, tensors = opened(tmp_path / "case")
    about["sources"] = about["sources"] if names is ... else names
    kept = tensors.pop("source_of")
    if source_of is not None:
        tensors["source_of"] = kept if source_of is ... else source_of(kept)
    save_file(tensors, tmp_path / "case", metadata={"lrp_fast": json.dumps(about)})
    with pytest.raises(ValueError, match=message):
        lrp_fast.load(tmp_path / "case")


def test_a_file_without_names(saved, tmp_path):
    saved.save(tmp_path / "case")
    about, tensors = opened(tmp_path / "case")
    del about["sources"]
    save_file(tensors, tmp_path / "case", metadata={"lrp_fast": json.dumps(about)})
    with pytest.raises(ValueError, match="it holds no 'sources'"):
        lrp_fast.load(tmp_path / "case")


# ---- reports


def test_tables_records_and_pages_show_them(saved):
    layers = torch.zeros_like(saved.layers)
    layers[0] = torch.tensor([1.0, -3.0, 0.5, 2.0, 2.0, 0.25])
    result = replace(saved, layers=layers).by_source({"x": (0, 2), "\x1b[31m\n": (3, 5)})
    text = table(result)
    assert text.split("|relevance|\n")[1].splitlines() == [
        r"   1         2  \x1b[31m\n                         +4.000        4.000  ++++++++++",
        "   2         2  x                                  -2.000        4.000  -----",
        "   3         2  (rest)                            +0.7500       0.7500  ++",
        "",
        "sums over the tokens of 3 sources, special ones included",
    ]
    assert "source" not in table(replace(result, sources=None))
    record = json.loads(json.dumps(as_json(result)))
    assert record["sources"][0] == {"name": "x", "tokens": 2, "relevance": -2.0, "magnitude": 4.0}
    assert [token["source"] for token in record["tokens"]] == [0, 0, 2, 1, 1, 2]
    data = _page_data(result)
    assert data["sources"] == ["x", "\x1b[31m\n", "(rest)"]
    assert np.frombuffer(base64.b64decode(data["source_of"]), "<i4").tolist() == [0, 0, 2, 1, 1, 2]
    bare = replace(result, sources=None)
    assert as_json(bare)["sources"] is None and "source" not in as_json(bare)["tokens"][0]
    assert _page_data(bare)["sources"] is None
