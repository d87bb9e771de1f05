"""What becomes a prompt's ids, what is said of it, and what is refused, before any layer runs."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import lrp_fast
from lrp_fast import attribute, attribute_batch, between
from lrp_fast.prompt import read
from lrp_fast.report.html import write_html
from lrp_fast.report.record import as_json
from lrp_fast.report.table import table

NAMES = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", "system", ":"]
WORDS = [*NAMES, "The", "capital", "of", "Australia", "is", "Sydney", "Canberra"]
TEXT = "The capital of Australia is"
PLAIN = [WORDS.index(word) for word in TEXT.split()]
USER = {"role": "user", "content": TEXT}
ANSWER = {"role": "assistant", "content": "Sydney is"}
STRINGS = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ' : ' + m['content'] }}{% if not loop.last %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}</s>assistant : {% endif %}"
)
PARTS = "<s>{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
PRINTS = "<s>{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}{% endfor %}"
FORGETS = "<s>{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"


def make(single="<s> $A", template=None):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, WORDS.index(name)) for name in ("<s>", "</s>") if name in single]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


def notes(prompt, tokenizer):
    return " ".join(read(prompt, tokenizer).notes)


def test_a_plain_prompt_has_no_notes():
    for prompt in (TEXT, make()(TEXT), [1, *PLAIN], [*PLAIN, 2], [2, 2, *PLAIN], [3, *PLAIN]):
        assert notes(prompt, make()) == ""
    assert read(TEXT, make()).ids.tolist() == make()(TEXT).input_ids == [1, *PLAIN]


def test_a_second_bos():
    tokenizer = make(template=STRINGS)
    rendered = tokenizer.apply_chat_template([USER], tokenize=False)
    found = read(rendered, tokenizer)
    assert found.ids.tolist() == tokenizer(rendered).input_ids and found.ids[:2].tolist() == [1, 1]
    assert found.notes == (
        "The prompt begins with '<s>' twice: the text has it, and the tokenizer adds it again, as transformers' "
        "tokenizer(prompt) does; hand in chat messages, or ids that were encoded with add_special_tokens=False.",
    )
    assert notes(tokenizer(rendered), tokenizer).startswith("The prompt begins with '<s>' twice: a text that has")
    for mended in ([USER], tokenizer.encode(rendered, add_special_tokens=False)):
        ids, said, *_ = read(mended, tokenizer)
        assert ids.tolist()[:2] == [1, 4] and "twice" not in " ".join(said)
    assert "twice" in notes("<s> " + TEXT, tokenizer.backend_tokenizer)
    assert "twice" in notes([1, 1, *PLAIN], tokenizer.backend_tokenizer)


def test_what_stands_behind_the_prompt():
    tokenizer = make("<s> $A </s>")
    said = (
        "The tokenizer ends the prompt with '</s>', so that the next token comes behind that; hand in the ids without "
        "the last one to explain what comes behind the text."
    )
    for prompt in (TEXT, tokenizer(TEXT), tokenizer(TEXT).input_ids):
        assert notes(prompt, tokenizer) == said
    assert notes(tokenizer(TEXT).input_ids[:-1], tokenizer) == ""
    assert "the last 2" in notes(TEXT, make("$A </s> </s>"))
    assert notes("</s>", tokenizer) == said and notes("</s> The", tokenizer) == said
    assert notes("<s>", tokenizer).startswith("The prompt begins with '<s>' twice")


def test_words_that_are_not_known():
    known, lost = "which stands for what the tokenizer does not know", "The capital of Tasmania is <unk> or Hobart"
    assert notes(lost, make()) == f"3 of the prompt's tokens are '<unk>', {known}; the first is at position 4."
    assert notes("The Tasmania", make("$A")) == f"1 of the prompt's tokens is '<unk>', {known}; it is at position 1."
    assert notes(make()("Tasmania"), make()).startswith("1 of the prompt's tokens is '<unk>'")
    assert notes("The <unk>", make()) == ""  # asked for by name
    letters = {sign: i for i, sign in enumerate([*pre_tokenizers.ByteLevel.alphabet(), "<end>"])}
    signs = Tokenizer(models.BPE(letters, []))
    signs.pre_tokenizer = pre_tokenizers.ByteLevel()
    spells = PreTrainedTokenizerFast(tokenizer_object=signs, unk_token="<end>")
    assert notes([letters["<end>"], 5], spells) == ""  # it spells what it does not know
    assert notes("  ", make()) == "The tokenizer makes no token of the text '  '."


def test_characters_that_leave_no_trace(tiny):
    letters = Tokenizer(models.BPE({sign: i for i, sign in enumerate("abc d")}, []))
    said = notes("ab\u0436c d\u0416", letters)
    assert said.startswith("The tokenizer drops '\u0436' and 1 more of its characters from the prompt")
    for sign in "+-,?\u20ac\u2212\u2192\n\r\u2028\u093f\u0941\u200d\U0001f600":
        assert notes(f"ab{sign}c", letters).startswith(f"The tokenizer drops {sign!r} from the prompt")
        for asked in ({"target": f"a{sign}b", "contrast": "c"}, {"contrast": f"a{sign}b", "target": "c"}):
            name, value = next(iter(asked.items()))
            with pytest.raises(ValueError) as refused:
                attribute(tiny("llama"), "abc d", **asked, tokenizer=letters)
            expected = f"{name} {value!r} holds {sign!r}, which the tokenizer drops: give a string without it, or a to"
            assert str(refused.value).startswith(expected)
    assert notes("abc d\u00a0\t", letters) == ""  # blanks
    attribute(tiny("llama"), "abc d", target="ab", contrast="c", tokenizer=letters)  # as it says
    letters.normalizer = normalizers.BertNormalizer()  # case and accents may go
    assert notes("\u00c1B c\u0327 D", letters) == ""
    assert "drops '\\n' and at least 199 more" in notes("a\n" + "".join(map(chr, range(0x4E00, 0x5200))), letters)
    ends = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", chat_template=STRINGS)
    letters.post_processor = processors.TemplateProcessing(single="$A d", special_tokens=[("d", 4)])
    assert "ends the prompt" in notes("a+b", letters) and "drops '+'" in notes("a+b", letters)  # beside another note
    assert "drops 'u' and 8 more" in notes([USER | {"content": "a+b"}], ends)


@pytest.mark.parametrize(
    "text", ["A na\u00efve \ufb01x\u2026 \u20ac5, 1+1\n\r\n \u0915\u093f \u304c \ud55c\u200d\u00a0x", "\u4e2d" * 9]
)
def test_what_spells_by_bytes_drops_nothing(text, smollm2):
    signs = Tokenizer(models.BPE({sign: i for i, sign in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    signs.pre_tokenizer = pre_tokenizers.ByteLevel()  # without a decoder its bytes are not put together
    for tokenizer in (signs, smollm2[1], transformers.ByT5Tokenizer()):
        assert "drops" not in notes(text, tokenizer)
    assert "drops" not in notes([USER | {"content": text}], smollm2[1])


def test_many_characters_are_tried_in_bounded_number():
    signs = Tokenizer(models.BPE({sign: i for i, sign in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    signs.pre_tokenizer = pre_tokenizers.ByteLevel()

    class Counts:
        calls = 0

        def encode(self, text, **options):
            Counts.calls += 1
            return signs.encode(text).ids

        def decode(self, ids):
            return signs.decode(ids)

    assert "drops" not in notes("".join(map(chr, range(0x4E00, 0x9C00))), Counts()) and Counts.calls < 230


def test_what_other_tokenizers_change_is_not_dropped():
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, ",": 3, "na": 4, "##ive": 5}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    bert = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    assert notes("AB, \u00c0b\tna\u00efve", bert) == "" and "drops '\\n' from" in notes("a\nb", bert)
    assert "drops" not in notes("a \u20ac [UNK]", bert)  # not known, which is another matter
    pieces = [("<unk>", 0.0), *((sign, -1.0) for sign in "\u2581abfi1,")]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.normalizer, unigram.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    assert notes("ab \ufb01\u00a0\uff11,  a\u3000b \u2581a", unigram) == ""
    assert notes("The  capital\t of ", make()) == "" and "drops '\\n'" in notes("The\ncapital", make())


def test_padding_is_left_out_where_a_mask_tells_it():
    tokenizer = make()
    for side in ("left", "right"):
        batch = tokenizer([TEXT], padding="max_length", max_length=9, padding_side=side, return_tensors="pt")
        assert read(batch).ids.tolist() == read(dict(batch)).ids.tolist() == [1, *PLAIN]
        assert notes(batch, tokenizer) == ""
        said = notes(batch.input_ids, tokenizer)
        assert f"{'begins' if side == 'left' else 'ends'} with '<pad>', 3 of them, which the model reads as" in said
    assert read(tokenizer.backend_tokenizer.encode(TEXT)).ids.tolist() == [1, *PLAIN]
    with pytest.raises(ValueError, match="^attention_mask has a gap between real tokens"):
        read({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]})
    with pytest.raises(ValueError, match=r"of one shape, not \(3,\) and \(2,\)"):
        read({"input_ids": [1, 2, 3], "attention_mask": [1, 1]})
    with pytest.raises(TypeError, match="'pixel_values_videos' is not what a tokenizer makes of a text, nor of"):
        read({"input_ids": [1, 2, 3], "pixel_values_videos": 0})


def test_what_a_processor_made_of_images():
    types, pixels = {"mm_token_type_ids": [[0, 1, 1, 0]]}, {"pixel_values": np.ones((1, 3, 2, 2))}
    given = {"input_ids": [[0, 7, 7, 3]], "attention_mask": [[0, 1, 1, 1]]} | types | pixels
    found = read(given).images
    assert list(found) == ["mm_token_type_ids", "pixel_values"]
    assert torch.equal(found["mm_token_type_ids"], torch.tensor([[1, 1, 0]])) and found["pixel_values"].ndim == 4
    assert read({"input_ids": [1, 2], "mm_token_type_ids": [0, 0], "pixel_values": None}).images == {}  # of a text
    for name, one in (types | {"image_grid_thw": [[1, 2, 2]]}).items():
        with pytest.raises(ValueError, match=f"^{name} came with the prompt, and no pixel_values of images"):
            read({"input_ids": [0, 7, 7, 3], name: one})
    with pytest.raises(TypeError, match="^pixel_values is no array: call the processor with return_tensors="):
        read(given | {"pixel_values": [np.ones(2), np.ones(3)]})
    with pytest.raises(ValueError, match="input_ids and attention_mask must be of one shape"):
        read(given | {"mm_token_type_ids": [[0, 1]]})


@pytest.mark.parametrize(("single", "pad"), [("$A", "</s>"), ("<s> $A", "</s>"), ("$A", "<s>"), ("<s> $A", "<s>")])
def test_padding_by_a_token_that_has_another_use(single, pad, tiny):
    tokenizer = make(single)
    tokenizer.pad_token = pad
    for side, place in (("left", "begins"), ("right", "ends")):
        batch = tokenizer([TEXT, "The"], padding=True, padding_side=side)
        said = f"The prompt {place} with '{pad}', {5 if single[0] == '<' and (side, pad) == ('left', '<s>') else 4} of"
        found = notes(batch.input_ids[1], tokenizer)
        assert found.startswith(said) and "twice" not in found and notes(batch.input_ids[0], tokenizer) == ""
        first, second = attribute_batch(tiny("llama"), batch.input_ids, tokenizer=tokenizer)
        assert first.explained.note == "" and said in second.explained.note
        mended = attribute_batch(tiny("llama"), batch, tokenizer=tokenizer)  # as the note says
        assert [one.explained.note for one in mended] == ["", ""]
    assert "twice" in notes(make()([TEXT]).input_ids[0][:1] * 2 + PLAIN, make())


def test_a_prompt_that_the_tokenizer_has_cut(tiny):
    tokenizer = make()
    cut = "The tokenizer has cut the prompt short: call it without truncation for all of it."
    assert notes(tokenizer(TEXT, truncation=True, max_length=4), tokenizer) == cut
    slow = transformers.ByT5Tokenizer()
    for length, said in ((3, cut), (99, "")):
        options = {"truncation": True, "max_length": length, "return_overflowing_tokens": True}
        assert notes(slow("abcd", add_special_tokens=False, **options), slow) == said
    found = attribute_batch(tiny("llama"), tokenizer([TEXT, "The"], truncation=True, max_length=4))
    assert [one.explained.note for one in found] == [cut, ""]
    assert [one.input_ids.tolist() for one in found] == [[1, *PLAIN[:3]], [1, PLAIN[0]]]
    pieces = tokenizer([TEXT, "The"], truncation=True, max_length=4, return_overflowing_tokens=True)
    counted = {"input_ids": [[5], [6]], "num_truncated_tokens": torch.tensor([2, -1])}
    for given, expected in ((pieces, [cut, cut, ""]), (counted, [cut, ""])):
        assert [one.explained.note for one in attribute_batch(tiny("llama"), **given)] == expected
        assert [one.explained.note for one in attribute_batch(tiny("llama"), dict(given))] == expected


@pytest.mark.parametrize("template", [STRINGS, PARTS, PRINTS], ids=["strings", "parts", "prints"])
@pytest.mark.parametrize("parts", [False, True])
def test_a_chat_is_what_its_template_makes_of_it(template, parts):
    tokenizer = make(template=template)
    last = [{"type": "text", "text": "The capital "}, {"type": "text", "text": "of Australia is"}]
    messages = [USER | {"content": last}] if parts else [USER]
    takes = [USER | {"content": [{"type": "text", "text": TEXT}]}] if template == PARTS else [USER]
    found = read(messages, tokenizer)
    expected = tokenizer.apply_chat_template(takes, add_generation_prompt=True, return_dict=False)
    assert found.ids.tolist() == expected
    begins = "up to where the assistant's answer is to begin"
    end = begins if template == STRINGS else "the same whether or not it is to begin the assistant's answer"
    assert found.notes == (f"The tokenizer's chat template has written the prompt, {end}.",)
    assert read([messages], tokenizer).ids.tolist() == read(tuple(messages), tokenizer).ids.tolist() == expected


def test_an_answer_that_is_begun_goes_on():
    tokenizer = make(template=STRINGS)
    found = read([USER, ANSWER], tokenizer)
    assert found.ids.tolist() == [1, 4, 7, *PLAIN, 2, 5, 7, WORDS.index("Sydney"), WORDS.index("is")]
    assert found.notes[0].endswith("up to where the last message is to be continued.")


def test_a_template_that_forgets_says_so_and_one_of_the_processor_serves():
    class Processor:
        tokenizer, chat_template = make(), STRINGS

    assert read([USER], Processor()).ids.tolist() == read([USER], make(template=STRINGS)).ids.tolist()
    said = read([{"role": "system", "content": "Canberra"}, USER], make(template=FORGETS)).notes
    assert said[1] == "The template leaves out the text of message 0, or changes it."


def test_a_message_that_another_one_holds_is_missed():
    template = "<s>{% for m in messages %}{{ m['content'] if loop.index0 not in [0, 2] }} {% endfor %}"
    messages = [{"role": "system", "content": "is"}, USER, {"role": "user", "content": "of"}, USER]
    said = read(messages, make(template=template)).notes[1:]
    assert said == ("The template leaves out the text of message 0, 2, or changes it.",)
    many = [USER, {"role": "user", "content": "of"}, USER] * 40
    assert read(many, make(template=template)).notes[1:] == (
        "The template leaves out the text of message 0, 2, or changes it.",
    )
    upper = STRINGS.replace("m['content']", "m['content'] | lower")
    assert "leaves out the text of message 0, or changes it" in notes([USER], make(template=upper))
    last = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content.split('Sydney')[-1] }} {% endif %}"
    )
    assert "of message 0, or" in notes(
        [USER | {"content": "The Sydney is"}, USER], make(template=last + "{% endfor %}")
    )


def test_what_a_message_holds_beside_its_text():
    call = {"type": "function", "function": {"name": "of", "arguments": {"is": "Sydney"}}}
    messages = [
        USER | {"name": "Canberra"}, ANSWER | {"reasoning_content": "The capital", "tool_calls": [call]},
        {"role": "system", "content": "is", "name": "of"}, ANSWER | {"content": None, "tool_calls": [call]}, USER,
    ]  # fmt: skip
    silent = "{% for m in messages %}{{ m.role }} : {{ m.content or '' }} {% endfor %}"
    assert read(messages, make(template=silent)).notes[1:] == (
        "The template leaves out 'name' of message 0, 2.",
        "The template leaves out 'reasoning_content' of message 1.",
        "The template leaves out 'tool_calls' of message 1, 3.",
    )
    told = silent.replace(
        "{% endfor",
        "{% if m.tool_calls and not m.content %}{{ m.tool_calls[0].function.name }}"
        "{% endif %}{% if m.role == 'system' %}{{ m.name }}{% endif %}{{ m.reasoning_content }} {% endfor",
    )
    assert read(messages, make(template=told)).notes[1:] == (
        "The template leaves out 'name' of message 0.",
        "The template leaves out 'tool_calls' of message 1.",
    )


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([USER, "x"], TypeError, "message 1 of the chat has no role: write {"),
        ([{"content": "x"}], TypeError, "message 0 of the chat has no role: write {"),
        ([{"role": "user"}], TypeError, "message 0 of the chat has no text as its content, but None: write {"),
        ([USER | {"content": 5}], TypeError, "has no text as its content, but 5"),
        ([USER | {"content": [{"type": "image", "url": "x"}]}], ValueError, "a part of type 'image', and lrp_fast"),
        ([USER | {"content": "a\ud800"}], ValueError, "message 0 of the chat is no text: .* at index 1; "),
        (USER, TypeError, "a dict without 'input_ids', and a chat is a list of messages"),
        ([TEXT, TEXT], TypeError, "input_ids is a list of strings: attribute_batch takes several prompts"),
        (TEXT.encode(), TypeError, r"input_ids is bytes, which is no text yet: decode it, as .decode\('utf-8'\) does"),
        ("", ValueError, "input_ids is empty: give at least one token"),
        (" ", ValueError, "the tokenizer makes no token of input_ids ' ': give a text that it knows"),
        ([[USER], [ANSWER]], TypeError, "a list of chats: attribute_batch takes several prompts, attribute one chat"),
        ([make()(TEXT)] * 2, TypeError, "a list of tokenizer's outputs: attribute_batch takes several prompts"),
    ],
)
def test_what_is_no_prompt(prompt, error, message):
    with pytest.raises(error, match=message):
        read(prompt, make("$A", STRINGS))


def test_a_tokenizer_without_a_template():
    for tokenizer in (make(), make().backend_tokenizer):
        with pytest.raises(ValueError, match="the tokenizer has no chat template: write the prompt as a string"):
            read([USER], tokenizer)
    with pytest.raises(ValueError, match="input_ids is a chat: give tokenizer= with it"):
        read([USER])
    strict = make(template="{{ raise_exception('Roles must\nalternate') }}")
    with pytest.raises(ValueError, match="^the tokenizer's chat template does not take these messages: Roles must$"):
        read([USER], strict)


def test_half_a_character_is_mended_as_the_refusal_says(tiny):
    text, model = "The \ud83d\ude00 of \ud83d", tiny("llama")
    for given in ({"input_ids": text}, {"input_ids": TEXT, "target": text}, {"input_ids": TEXT, "contrast": text}):
        name = list(given)[-1]
        with pytest.raises(ValueError, match=rf"^{name} is no text: .*'\\ud83d', at index 4; text.encode\('utf-16'"):
            attribute(model, **given, tokenizer=make())
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert mended == "The \U0001f600 of \ufffd" and len(read(mended, make()).ids) == 5


def test_strings_of_other_classes():
    class Loud(str):
        def __str__(self):
            return "something else"

    for prompt in (Loud(TEXT), np.str_(TEXT), np.array(TEXT), [TEXT], np.array([TEXT])):
        assert read(prompt, make()).ids.tolist() == [1, *PLAIN]


@pytest.mark.parametrize(
    "prompt",
    [
        (1, 2, 3), range(1, 4), [np.int64(1), torch.tensor(2), 3], np.array([1, 2, 3], ">i8"),
        np.array([3, 2, 1])[::-1], np.array([[1, 2, 3]], np.uint16), torch.tensor([1, 2, 3], dtype=torch.uint8),
        [[1, 2, 3]], {"input_ids": np.array([1, 2, 3])}, torch.tensor([1, 2, 3], dtype=torch.uint32),
    ],
    ids=repr,
)  # fmt: skip
def test_ids_in_any_dress(prompt):
    found = read(prompt)
    assert found.ids.dtype == torch.int64 and found.ids.tolist() == [1, 2, 3]
    assert read(found, make()) is found


def test_ids_are_a_copy():
    given = torch.tensor([1, 2, 3])
    found = read(given).ids
    given[0] = 9
    assert found.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (torch.tensor(5), ValueError, r"one prompt, not a number: write \[5\]"),
        ([True, 2], TypeError, "must hold whole numbers, not torch.bool"),
        ([[1, True]], TypeError, "must hold whole numbers, not torch.bool"),
        (np.array([True]), TypeError, "must hold whole numbers, not torch.bool"),
        ([1, 2.0], TypeError, "must hold whole numbers, not torch.float32"),
        ([[1, 2], [3]], TypeError, "must be a LongTensor .* expected sequence of length 2"),
        ([2**70], TypeError, "must be a LongTensor .* Overflow"),
        ({1, 2}, TypeError, "must be a LongTensor"),
        (torch.ones(2, dtype=int, device="meta"), TypeError, "not a tensor of layout torch.strided on meta"),
        (torch.ones(2, dtype=int).to_sparse(), TypeError, "not a tensor of layout torch.sparse_coo on cpu"),
        (np.array([1, 2**63 + 5], np.uint64), ValueError, "input_ids holds token 9223372036854775813, which no voc"),
        (torch.tensor([2**63 + 5], dtype=torch.uint64), ValueError, "token 9223372036854775813, which no vocabulary"),
        ({"input_ids": [1, 2], "attention_mask": torch.ones(2, device="meta")}, ValueError, "attention_mask must be"),
        ([[[1, 2]]], ValueError, r"one prompt, not \(1, 1, 2\)"),
        (range(0), ValueError, "input_ids is empty"),
    ],
)
def test_what_is_no_ids(prompt, error, message):
    with pytest.raises(error, match=message):
        read(prompt)


def test_notes_go_wherever_the_result_goes(tiny, tmp_path):
    tokenizer, model = make("<s> $A </s>"), tiny("llama")
    one, other = attribute(
        model, TEXT, target=[9, "Sydney"], contrast=5, tokenizer=tokenizer, graph=lrp_fast.GraphSpec(topk=2)
    )
    said = one.explained.note
    assert said.startswith("The tokenizer ends the prompt") and other.explained.note == said
    assert one.graph.manifest["explained"]["note"] == said and as_json(one)["explained"]["note"] == said
    one.save(tmp_path / "one.safetensors")
    assert lrp_fast.load(tmp_path / "one.safetensors").explained == one.explained
    write_html(one, tmp_path / "one.html")
    assert "so that the next token comes behind that" in (tmp_path / "one.html").read_text()
    assert said in table(one)
    first, second = attribute_batch(model, [TEXT, [1, 1, *PLAIN]], tokenizer=tokenizer)
    assert first.explained.note == said and "twice" in second.explained.note and "twice" not in said
    both = attribute(model, TEXT, target="Sydney is", contrast="Sydney of", tokenizer=tokenizer)
    assert both.explained.note.startswith("'Sydney is' and 'Sydney of' share") and both.explained.note.endswith(said)


def test_targets_in_arrays(tiny):
    model, tokenizer = tiny("llama"), make()

    def ids(target, contrast=7):
        found = attribute(model, PLAIN, target=target, contrast=contrast, tokenizer=tokenizer)
        if not isinstance(found, list):
            return found.explained.terms[0].target.id
        return [(one.explained.terms[0].target.id, one.explained.terms[0].contrast.id) for one in found]

    assert [ids(one) for one in (torch.tensor(5), torch.tensor([5]), np.array([[5]]), np.int8(5))] == [5] * 4
    for several in (torch.tensor([5, 6]), np.array([5, 6], np.uint8), [np.int64(5), torch.tensor(6)]):
        assert ids(several) == [(5, 7), (6, 7)]
    assert ids(np.array(["The", "of"])) == [(8, 7), (10, 7)]
    assert ids([5, 6], torch.tensor([8, 9])) == [(5, 8), (6, 9)] and ids(5, np.array([8, 9])) == [(5, 8), (5, 9)]
    for wrong in (torch.tensor(True), torch.tensor([5.0, 6.0]), np.bool_(1), b"The", [torch.tensor([True])]):
        with pytest.raises(TypeError, match="target"):
            ids(wrong)
    for wrong in (torch.tensor(5, device="meta"), torch.tensor([0, 5]).to_sparse()):
        with pytest.raises(TypeError, match="^target is a tensor of layout .*, which holds no list of numbers: give"):
            ids(wrong)
        with pytest.raises(TypeError, match="^contrast is a tensor"):
            ids(5, wrong)
    no_number, truth = torch.tensor(1, device="meta"), torch.tensor([True, False])
    for wrong in (no_number, True, [True, False], (0, np.True_), [truth[0]], truth, truth.numpy()):
        with pytest.raises(TypeError, match="^position must be a whole number or a sequence of them"):
            attribute(model, PLAIN, position=wrong)
    for wrong in (torch.ones(2, 2, dtype=int), [torch.tensor([5, 6])], [[5]]):
        with pytest.raises(TypeError, match="give one "):
            ids(wrong)
    with pytest.raises(ValueError, match="must not be empty"):
        ids(np.array([], int))


def test_a_prompt_that_is_too_long_by_what_target_and_contrast_share(tiny):
    model = tiny("gpt2", max_position_embeddings=6)
    asked = {"target": "Sydney is", "contrast": "Sydney of", "tokenizer": make()}
    said = "the prompt has 7 tokens, 1 of them what target and contrast share, more than the model's 6 positions: short"
    with pytest.raises(ValueError, match=f"^{said}"):
        attribute(model, TEXT, **asked)
    assert len(attribute(model, TEXT.removesuffix(" is"), **asked).input_ids) == 6


def test_batches_take_all_that_a_tokenizer_returns(tiny):
    model, tokenizer, texts = tiny("llama"), make(template=STRINGS), [TEXT, "The capital"]
    more = {f"return_{name}": True for name in ("token_type_ids", "special_tokens_mask", "length", "offsets_mapping")}
    padded = tokenizer(texts, padding=True, return_tensors="pt", **more)
    truth = attribute_batch(model, [read(text, tokenizer).ids for text in texts], target=[5, 6])
    target = torch.tensor([5, 6])
    for found in (
        attribute_batch(model, padded, target=target),
        attribute_batch(model, **padded, target=target),
        attribute_batch(model, tokenizer(texts), target=target.numpy()),
        attribute_batch(model, **tokenizer(texts), target=[5, 6]),
        attribute_batch(model, texts, target=target, tokenizer=tokenizer),
        attribute_batch(model, [tokenizer(text) for text in texts], target=target),
    ):
        assert all(torch.equal(one.layers, alone.layers) for one, alone in zip(found, truth, strict=True))
    chats = [[USER], [USER, ANSWER]]
    truth = attribute_batch(model, [read(chat, tokenizer).ids for chat in chats])
    for one, alone, chat in zip(attribute_batch(model, chats, tokenizer=tokenizer), truth, chats, strict=True):
        assert torch.equal(one.layers, alone.layers)
        assert one.explained.note == notes(chat, tokenizer)
    edges = between(model, [USER], 0, 1, [3], target=5, tokenizer=tokenizer)
    assert torch.equal(edges, between(model, read([USER], tokenizer).ids, 0, 1, [3], target=5))


def test_without_a_tokenizer_there_are_no_words(tiny):
    result = attribute(tiny("llama"), [1, 1, 3, 3])
    assert result.tokens is None and result.special is None and result.explained.note == ""
    assert all(dataclasses.asdict(token)["text"] is None for token in result.explained.best)


def typed():
    """A tokenizer that gives token types, as BERT's do, and others that are made of vocabularies alone."""
    tokenizer = make(template=STRINGS)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def test_token_types_that_the_model_reads_are_refused(tiny):
    """GPT-2 embeds them: 0, which stands for nothing elsewhere, as token 0."""
    model, tokenizer = tiny("gpt2"), typed()
    given = tokenizer(TEXT, return_tensors="pt")
    mended = tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)
    assert (model(**given).logits - model(**mended).logits).abs().max() > 0.1
    why = "token_type_ids came with the prompt, which GPT2LMHeadModel reads, and .* return_token_type_ids=False$"
    for types in (given["token_type_ids"], given["token_type_ids"].tolist(), given["token_type_ids"].numpy()):
        with pytest.raises(ValueError, match=f"^{why}"):
            attribute(model, {**given, "token_type_ids": types})
    with pytest.raises(ValueError, match=f"^{why}"):
        between(model, given, 0, 1, [3], target=5)
    found = attribute(model, mended, 5)
    assert torch.equal(found.layers, attribute(model, {**given, "token_type_ids": None}, 5).layers)
    assert found.value == pytest.approx(model(**mended).logits[0, -1, 5].item(), rel=1e-5)
    texts = [TEXT, "The capital"]
    several = tokenizer(texts, padding=True, return_tensors="pt")
    for call in (
        lambda: attribute_batch(model, several),
        lambda: attribute_batch(model, **several),
        lambda: attribute_batch(model, tokenizer(texts)),
        lambda: attribute_batch(model, **tokenizer(texts)),
    ):
        with pytest.raises(ValueError, match=f"^{why}"):
            call()
    with pytest.raises(ValueError, match=f"^row 1: {why}"):
        attribute_batch(model, [mended, given])
    attribute_batch(model, **tokenizer(texts, return_token_type_ids=False))


def test_a_text_of_a_tokenizer_that_would_give_token_types_has_a_note(tiny):
    model, tokenizer = tiny("gpt2"), typed()
    note = (
        "The tokenizer gives token_type_ids besides the ids, which GPT2LMHeadModel would read: what is explained is "
        "the model without them, as with return_token_type_ids=False."
    )
    for given in (TEXT, [USER]):
        (one,) = attribute_batch(model, [given], tokenizer=tokenizer)
        for found in (attribute(model, given, tokenizer=tokenizer), one):
            assert found.explained.note.count(note) == 1
        assert note not in attribute(model, given, tokenizer=make(template=STRINGS)).explained.note
        assert "token_type" not in attribute(tiny("llama"), given, tokenizer=tokenizer).explained.note
    assert "token_type" not in attribute(model, [5, 6], tokenizer=tokenizer).explained.note


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_token_types_that_the_model_has_no_use_for_are_left_out(family, tiny):
    given = typed()(TEXT, return_tensors="pt")
    given["token_type_ids"] = torch.ones_like(given["input_ids"])
    model = tiny(family)
    assert torch.equal(attribute(model, given, 5).layers, attribute(model, given["input_ids"], 5).layers)
