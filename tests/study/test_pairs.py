"""Pairs are where the definition says, found again here by whole forward passes without any cache."""

import copy
import importlib
import json
import os
import re
import time

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as spellers

from lrp_fast import attribute, prompt, study
from lrp_fast.study import folder, pairs, read_cases
from lrp_fast.study.writing import Prefix, Writer, generated, together
from tests import decoders
from tests.decoders import RECENT

MOST, K = 6, 4


@pytest.fixture(scope="module")
def logits(model):
    def of(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1]

    return of


@pytest.fixture(scope="module")
def written(logits):
    """``written(ids, most)``: greedily, id 0 ends an answer."""

    def of(ids, most):
        found = []
        while len(found) < most and 0 not in found:
            found.append(int(logits([*ids, *found]).argmax()))
        return found

    return of


@pytest.fixture(scope="module")
def oracle(logits, written, tokenizer):
    """(position, target, contrast) by the definition, or None."""

    def of(ids, right):
        answer = written(ids, MOST)
        for t, own in enumerate(answer):
            best = logits([*ids, *answer[:t]]).topk(K).indices.tolist()
            for other in best:
                if other != own:
                    rest = [] if other == 0 else written([*ids, *answer[:t], other], MOST - t - 1)
                    if right(tokenizer.decode([*answer[:t], other, *rest], skip_special_tokens=True)):
                        return t, own, other
        return None

    return of


PROMPTS = [
    {"id": f"p{i}", "prompt": text, "pattern": pattern}
    for i, (text, pattern) in enumerate(
        [
            ("the capital of australia is", "canberra"), ("the capital", "^new"), ("is new zealand", "sydney"),
            ("new zealand is", "the.*capital"), ("of the", "of"), ("sydney", "zealand$"), ("canberra is new", "xyz"),
            ("australia is the capital of", "is is"), ("the the the", "australia|of"), ("capital of sydney", "nowhere"),
        ]
    )
]  # fmt: skip


def test_they_are_those_of_the_definition(model, tokenizer, oracle, written, logits):
    found = pairs(model, tokenizer, PROMPTS, k=K, bound=-100.0, max_new_tokens=MOST, batch=3)
    kinds = set()
    for asked, case in zip(PROMPTS, found, strict=True):
        ids = tokenizer.encode(asked["prompt"], add_special_tokens=False)
        answer = written(ids, MOST)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        right = lambda said, pattern=asked["pattern"]: bool(re.search(pattern, said))  # noqa: E731
        if right(text):
            assert case["left_out"] == f"the answer is right: {text!r}"
            kinds.add("right")
            continue
        truth = oracle(ids, right)
        if truth is None:
            assert case["left_out"].startswith(f"no roll-out of the {K} best tokens at any of the {len(answer)} pos")
            kinds.add("none")
            continue
        t, target, contrast = truth
        kinds.add("first" if t == 0 else "later")
        assert (case["input_ids"], case["target"], case["contrast"]) == ([*ids, *answer[:t]], target, contrast)
        row = logits(case["input_ids"])
        assert case["delta"] == pytest.approx(float(row[target] - row[contrast]), abs=1e-4)
        assert (case["pair"], case["generated"], case["asked"]) == ("roll-out", text, asked["prompt"])
        assert case["segments"] == ({"completion": [[len(ids), len(ids) + t]]} if t else {})
        assert attribute(model, case["input_ids"], target, contrast).value == pytest.approx(case["delta"], abs=1e-4)
    assert kinds >= {"right", "none", "first"}


def test_small_differences_are_left_out_and_kept(model, tokenizer):
    every = pairs(model, tokenizer, PROMPTS, k=K, bound=-100.0, max_new_tokens=MOST)
    some = pairs(model, tokenizer, PROMPTS, k=K, bound=1.0, max_new_tokens=MOST)
    assert len(every) == len(some) == len(PROMPTS)
    below = [case["id"] for case in every if case.get("delta", 9) <= 1]
    assert below
    for one, other in zip(every, some, strict=True):
        if one["id"] in below:
            assert other["left_out"].endswith("which is not above the bound, 1") and other["delta"] == one["delta"]
        else:
            assert one == other


def test_a_checker_an_exact_answer_and_a_pattern(model, tokenizer, written):
    ids = tokenizer.encode("the capital", add_special_tokens=False)
    text = tokenizer.decode(written(ids, MOST), skip_special_tokens=True)
    asked = []

    def checker(fields, said):
        asked.append(fields)
        return said == text

    given = {"id": "a", "prompt": "the capital", "n": 3}
    (one,) = pairs(model, tokenizer, [given], checker=checker, max_new_tokens=MOST)
    assert "the answer is right" in one["left_out"] and asked == [{"id": "a", "n": 3}]
    given = [{"prompt": "the capital", "answer": answer} for answer in (f" {text} ", text[:-1])]
    exact, wrong = pairs(model, tokenizer, given, max_new_tokens=MOST)
    assert "the answer is right" in exact["left_out"] and "the answer is right" not in wrong["left_out"]


def test_an_answer_begins_with_the_space_that_sentencepiece_drops(model, tokenizer, written):
    """As it does with a byte-level vocabulary, so that one pattern serves both."""
    spelled = {f"\u2581{word}" if i > 1 else word: i for word, i in tokenizer.get_vocab().items()}
    words = Tokenizer(models.WordLevel(spelled, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), spellers.Metaspace()
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]")
    ids = own.encode("the capital", add_special_tokens=False)
    plain = [one for one in written(ids, MOST) if one > 1]
    assert ids == tokenizer.encode("the capital", add_special_tokens=False) and plain
    text = own.decode(plain)
    assert not text.startswith(" ")
    given = {"id": "a", "prompt": "the capital", "pattern": f"^ {text}$"}
    (case,) = pairs(model, own, [given], max_new_tokens=MOST)
    assert case["left_out"] == f"the answer is right: {' ' + text!r}"


def test_a_stronger_models_answer_where_no_roll_out_passes(model, tokenizer, written, logits):
    ids = tokenizer.encode("the capital", add_special_tokens=False)
    answer = written(ids, MOST)
    right = [*answer[:2], 9 if answer[2] != 9 else 8]
    given = {"id": "a", "prompt": "the capital", "pattern": "never", "stronger": tokenizer.decode(right)}
    (case,) = pairs(model, tokenizer, [given], max_new_tokens=MOST, bound=-100.0)
    assert (case["pair"], case["target"], case["contrast"]) == ("stronger", answer[2], right[2])
    assert case["input_ids"] == [*ids, *answer[:2]]
    row = logits(case["input_ids"])
    assert case["delta"] == pytest.approx(float(row[answer[2]] - row[right[2]]), abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "right", "before", "target", "contrast"),
    [
        ("sydney is new", "sydney of", [7], 6, 4),
        ("sydney", "canberra", [], 7, 8),
        ("sydney is", "sydney", [7], 6, 0),  # the right one ends there
        ("sydney", "sydney is", [7], 0, 6),
    ],
)
def test_two_answers_part_at_their_first_difference(wrong, right, before, target, contrast, model, tokenizer, logits):
    given = {"id": "a", "prompt": "the capital", "wrong": wrong, "stronger": right, "segments": {"s": "capital"}}
    (case,) = pairs(model, tokenizer, [given], bound=-100.0)
    assert (case["input_ids"], case["target"], case["contrast"]) == ([2, 3, *before], target, contrast)
    assert (case["pair"], case["generated"]) == ("given", wrong)
    assert case["segments"] == {"s": [[1, 2]]} | ({"completion": [[2, 3]]} if before else {})
    row = logits(case["input_ids"])
    assert case["delta"] == pytest.approx(float(row[target] - row[contrast]), abs=1e-4)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"prompt": "the"}, "nothing says what a right answer is: give a checker, or the field answer or pattern"),
        ({"prompt": "the", "pattern": "("}, "pattern '(' is no regular expression: "),
        ({"input_ids": [99], "pattern": "x"}, "input_ids holds token 99, outside the vocabulary, 0 to 10"),
        ({"prompt": "the", "answer": 3}, "answer must be a string that is not empty, not 3"),
        ({"prompt": "the", "wrong": "of"}, "it has a wrong answer and no right one: give stronger or answer too"),
        ({"prompt": "the", "wrong": "of", "answer": "of"}, "the right answer 'of' and the wrong one never part"),
        ({"prompt": "the", "wrong": "of", "answer": "rome"}, "the right answer 'rome' holds what the tokenizer does"),
        ({"prompt": "of", "answer": "x", "segments": {"s": "the"}, "wrong": "is"}, "the right answer 'x' holds what"),
        ({"prompt": "of", "answer": "the", "segments": {"s": "the"}, "wrong": "is"}, "the text of source 's' does not"),
        ({"nothing": 1}, "item 1: it has no prompt"),
    ],
)  # fmt: skip
def test_what_makes_no_pair_says_why_and_the_rest_go_on(given, why, model, tokenizer):
    good = {"id": "good", "prompt": "the", "wrong": "of", "answer": "is"}
    bad, other = pairs(model, tokenizer, [given, good], bound=-100.0)
    assert bad["left_out"].startswith(why) and bad["id"] == "item 1"
    assert other["pair"] == "given" and "left_out" not in other


def test_pairs_are_cases_of_a_run(model, tokenizer, tmp_path):
    found = pairs(model, tokenizer, PROMPTS, k=K, bound=0.0, max_new_tokens=MOST)
    counts = study.run(model, found, tmp_path / "run", tokenizer=tokenizer)
    assert counts["done"] == sum("left_out" not in case for case in found) > 0 and sum(counts.values()) == len(found)
    table = study.table(tmp_path / "run").set_index("id")
    for case in read_cases(found):
        if case.left_out is None:
            assert table.value[case.id] == pytest.approx(case.fields["delta"], abs=1e-4)
            assert table.contrast[case.id] == case.fields["contrast_text"]
        else:
            assert (table.status[case.id], table.why[case.id]) == ("refused", case.left_out)


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen2"])
def test_caches_of_windows_and_others_roll_out_as_whole_passes(family, tiny, tokenizer):
    """Sliding windows of 7 tokens are within."""
    model = tiny(family, vocab_size=11, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    rolls_out(model, [2, 3, 4, 5, 6, 7, 8, 9, 10])


def rolls_out(model, ids):
    writer = Writer(model, None, 8, 3, frozenset([0]))
    with torch.no_grad():
        going = Prefix(ids[:-2], writer)
        for one in ids[-2:]:
            going.step(one)
        assert going.cache is not None
        found = going.roll_out([4, 0, 7], 8)
        for first, rest in zip([4, 0, 7], found, strict=True):
            said = [first]
            while len(said) < 9 and said[-1] != 0:
                said.append(int(model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
            assert rest == said[1:]


@RECENT
@pytest.mark.parametrize("family", ["llama4_text", "recurrent_gemma"])
def test_answers_written_together_are_those_written_alone(family):
    """Chunks, and states, count from where a row begins, padding included."""
    model = decoders.build(family, torch.float32)
    draw = torch.Generator().manual_seed(3)
    lengths = (3, 5, 9, 14, 20, 5, 20)
    read = {str(i): prompt.read(torch.randint(3, 97, (n,), generator=draw)) for i, n in enumerate(lengths)}
    found = {8: {}, 1: {}}
    for batch, answers in found.items():
        for ids in together({id: len(one.ids) for id, one in read.items()}, batch):
            with torch.no_grad():
                texts = generated([read[id].ids for id in ids], Writer(model, None, 10, batch, frozenset([2])), 10)
            answers |= zip(ids, texts, strict=True)
    assert found[8] == found[1] and len(found[8]) == 7


@RECENT
@pytest.mark.parametrize("family", ["qwen3_next", "lfm2", "falcon_h1"])
def test_states_of_layers_without_softmax_roll_out_as_whole_passes(family):
    rolls_out(decoders.build(family, torch.float32), list(range(3, 12)))


@pytest.mark.parametrize(
    "asked", [{"suppress_tokens": [2, 3, 4, 5, 6]}, {"num_return_sequences": 2}, {"cache_implementation": "static"}]
)
def test_what_a_models_own_config_asks_of_generation_does_not_count(asked, model, tokenizer):
    asking = copy.deepcopy(model)
    for name, value in asked.items():
        setattr(asking.generation_config, name, value)
    own = asking.generation_config.to_dict()
    found, plain = (pairs(one, tokenizer, PROMPTS, k=K, bound=-100.0, max_new_tokens=MOST) for one in (asking, model))
    assert found == plain and asking.generation_config.to_dict() == own


def test_of_several_tokens_that_end_an_answer_the_one_that_the_model_would_take(model, tokenizer, logits):
    row = logits([2, 3, 7])
    worse, better = int(row[:6].argmin()), 7 + int(row[7:].argmax())
    assert row[worse] < row[better]
    several = copy.deepcopy(model)
    several.generation_config.eos_token_id = [worse, better]
    given = {"id": "a", "prompt": "the capital", "wrong": "sydney is", "stronger": "sydney"}
    (case,) = pairs(several, tokenizer, [given], bound=-100.0)
    assert (case["input_ids"], case["target"], case["contrast"]) == ([2, 3, 7], 6, better)


def test_an_answer_that_was_cut_off_has_not_ended(model, tokenizer, written):
    answer = written([2, 3], MOST)
    assert 0 not in answer
    given = {"id": "a", "prompt": "the capital", "pattern": "never", "stronger": tokenizer.decode(answer)}
    (case,) = pairs(model, tokenizer, [given], max_new_tokens=3, bound=-100.0)
    assert case["left_out"] == "the right answer goes on where max_new_tokens, 3, cut the wrong one: give more"


def test_a_checker_that_fails_costs_its_own_prompt(model, tokenizer):
    given = [{"id": "a", "prompt": "the"}, {"id": "b", "prompt": "the", "answer": "the"}]
    one, other = pairs(model, tokenizer, given, checker=lambda fields, said: fields["answer"] in said, bound=-100.0)
    assert one["left_out"] == "the checker failed with KeyError ('answer')"
    assert "failed" not in other.get("left_out", "")


def test_a_pattern_that_never_ends_costs_its_own_prompt(model, tokenizer, written, monkeypatch):
    monkeypatch.setattr(importlib.import_module("lrp_fast.study.pairs"), "_SECONDS", 0.1)
    endless = r"^(\w|\w\w|\s)+\d$"
    begun = time.perf_counter()
    given = [{"id": "a", "prompt": "the capital", "pattern": endless}, {"id": "b", "prompt": "the", "pattern": "x"}]
    one, other = pairs(model, tokenizer, given, max_new_tokens=12, bound=-100.0)
    text = tokenizer.decode(written([2, 3], 12), skip_special_tokens=True)
    assert one["left_out"] == (
        f"pattern {endless!r} searched the answer {text!r} for more than 0.1 s: write it without repeats of repeats"
    )
    assert other["left_out"].startswith("no roll-out") and time.perf_counter() - begun < 60


@pytest.mark.parametrize("error", [IndexError, KeyError, RuntimeError])
def test_an_error_of_one_prompt_is_its_own(error, model, tokenizer, monkeypatch):
    module = importlib.import_module("lrp_fast.study.pairs")
    plain = module._walk

    def failing(case, *given):
        if case.id == "p3":
            raise error("no such thing")
        return plain(case, *given)

    monkeypatch.setattr(module, "_walk", failing)
    found = {one["id"]: one for one in pairs(model, tokenizer, PROMPTS, k=K, bound=-100.0, max_new_tokens=MOST)}
    said = "no such thing" if error is RuntimeError else f"looking for a pair failed with {error.__name__} ("
    assert found["p3"]["left_out"].startswith(said) and len(found) == len(PROMPTS)
    assert any("left_out" not in one for one in found.values())


@pytest.mark.parametrize("torn", [False, True])
def test_what_was_killed_goes_on(torn, model, tokenizer, tmp_path, monkeypatch):
    module = importlib.import_module("lrp_fast.study.pairs")
    given = [*PROMPTS, {"id": "given", "prompt": "the", "wrong": "of", "answer": "is"}, {"id": "nothing"}]
    how = {"k": K, "bound": -100.0, "max_new_tokens": MOST, "batch": 3}
    whole = pairs(model, tokenizer, given, **how)
    file = tmp_path / "cases.jsonl.unfinished"
    found = []

    def killed(done, of):
        found.append(done)
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pairs(model, tokenizer, given, unfinished=file, progress=killed, **how)
    assert found[0] == 1 and len(file.read_bytes().splitlines()) == 6  # "nothing" needs no line
    if torn:
        os.truncate(file, file.stat().st_size - 9)
    walked, plain = [], module._pair
    monkeypatch.setattr(module, "_pair", lambda case, *rest: walked.append(case.id) or plain(case, *rest))
    assert pairs(model, tokenizer, given, unfinished=file, **how) == whole
    assert len(walked) == len(given) - 6 + torn
    walked.clear()
    assert pairs(model, tokenizer, given, unfinished=file, **how) == whole and not walked


def test_another_search_is_not_gone_on_with(model, tokenizer, tmp_path, tiny):
    file = tmp_path / "unfinished"
    how = {"k": K, "max_new_tokens": MOST, "unfinished": file}
    pairs(model, tokenizer, PROMPTS[:3], **how)
    before = file.read_bytes()
    other = tiny("llama", seed=1, vocab_size=11, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    for given in [(model, PROMPTS[:2], {}), (model, PROMPTS[:3], {"k": 3}), (other, PROMPTS[:3], {})]:
        with pytest.raises(ValueError, match="is of a search for pairs that was begun with another model, other prom"):
            pairs(given[0], tokenizer, given[1], **how | given[2])
    with open(file, "ab") as held:
        assert folder.lock(held)
        with pytest.raises(ValueError, match="another process works on .*: wait for it to end"):
            pairs(model, tokenizer, PROMPTS[:3], **how)
    assert file.read_bytes() == before
    file.write_text(json.dumps(["thesis"]) + "\n")
    with pytest.raises(ValueError, match="holds a line that no search for pairs wrote"):
        pairs(model, tokenizer, PROMPTS[:3], **how)


def test_a_prompt_that_leaves_no_room_for_an_answer(tiny, tokenizer):
    model = tiny("gpt2", vocab_size=11, bos_token_id=0, eos_token_id=0, pad_token_id=0, max_position_embeddings=16)
    given = [{"id": str(length), "input_ids": [3] * length, "pattern": "never"} for length in (12, 13, 17)]
    fits, short, long = pairs(model, tokenizer, given, max_new_tokens=4, bound=-100.0)
    assert fits["left_out"].startswith("no roll-out of ")
    assert short["left_out"].startswith("the prompt has 13 tokens, and with 4 of an answer behind them they are more")
    assert long["left_out"] == "the prompt has 17 tokens, more than the model's 16 positions: shorten it"


@pytest.mark.parametrize("bound", [float("nan"), "1", None, True])
def test_a_bound_is_a_number(bound, model, tokenizer):
    with pytest.raises(ValueError, match="bound must be a number, not "):
        study.pairs(model, tokenizer, [{"id": "a", "prompt": "the capital", "answer": "x"}], bound=bound)


def test_what_is_looked_for_must_not_be_there(model, tokenizer):
    """Else it would be gone without a word."""
    given = {"id": "a", "prompt": "the capital", "answer": "x", "target": "sydney", "position": 0}
    (found,) = study.pairs(model, tokenizer, [given])
    assert found["left_out"].startswith("it has target and position, which pairs looks for")


def test_models_that_write_nothing_are_refused(tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.LlamaConfig(**sizes, vocab_size=11, pad_token_id=0)
    with pytest.raises(TypeError, match="pairs are of answers, and LlamaForSequenceClassification writes none"):
        pairs(transformers.LlamaForSequenceClassification(config).eval(), tokenizer, PROMPTS)
