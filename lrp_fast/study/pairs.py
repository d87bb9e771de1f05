"""Contrast pairs: of a wrong answer the token at which it left a right one, and what should have stood there.

The wrong answer is what the model writes greedily, y_1 ... y_T behind the prompt, if the checker does not pass it.
Walking from the first of its tokens on, at each position t the model's k best next tokens are looked at, but for y_t:
each is put behind y_1 ... y_(t-1), and the answer is written to its end greedily from there (a roll-out). The pair is
at the first t at which a roll-out passes the checker: up to there the wrong answer is the beginning of a right one that
the model has within reach, and with y_t it leaves that. The target is y_t, and the contrast the best-ranked of the
tokens whose roll-outs pass (k = 10, as in arXiv 2604.17761).

Where no roll-out passes at any t, a stronger model's right answer serves if there is one: the pair is at the first
token in which it differs from y. The same where two answers, a right and a wrong one, are given. An answer that ends
where the other goes on is taken to end with the model's end-of-sequence token. Otherwise the case has no pair, and says
why. One whose logit difference is not above the bound (1 in the paper) is kept too, and left out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import regex
import torch

from .. import answers, prompt, question
from ..choices import choices_of
from ..hf import head_of, is_masked_language_model, position_limit
from ..sources import divide
from ..targets import best_of
from ..tokenizer import read as read_tokenizer
from . import journal
from .cases import Case, read_cases
from .faults import is_lost, sentence
from .segments import spans
from .writing import Prefix, Writer, ends_of, generated, text_of, together

COMPLETION = "completion"  # the segment of what the model had written before the pair
_SECONDS = 1.0  # that a pattern may search an answer

Checker = Callable[[dict, str], bool]


@dataclass(frozen=True)
class Pair:
    """Where two answers part: behind so many tokens of an answer, these two tokens; ``how`` it was found."""

    before: list[int]
    target: int
    contrast: int
    delta: float
    how: str


def pairs(
    model,
    tokenizer,
    prompts,
    *,
    checker: Checker | None = None,
    k: int = 10,
    bound: float = 1.0,
    max_new_tokens: int = 64,
    batch: int = 16,
    unfinished: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict]:
    """Of prompts that a model may get wrong, cases with targets and contrasts, for `lrp_fast.study.read_cases`.

    Args:
        prompts: what `read_cases` takes, of prompts without targets. What a right answer is, the ``checker`` says, or
            fields of each: ``answer``, a string that the answer has to be, blanks at its ends apart; or ``pattern``, a
            regular expression (of the package regex, which takes those of re) to be found in it. Some go over a text in
            more ways than can be waited for: a case whose pattern takes more than a second has no pair, and says so.
            Besides, ``stronger`` may be a stronger model's right answer; and with ``wrong``, a wrong answer, nothing is
            generated: it is compared with ``stronger``, or with ``answer``. These texts are tokenized as they stand, so
            that a blank between prompt and answer belongs at their beginnings.
        checker: called with a prompt's fields and id, and the text of an answer (without special tokens, and with the
            space at its front, if it begins with one); whether it is right. Nothing bounds its time.
        k: how many of the best next tokens are looked at, the model's own included.
        bound: on the logit difference of target and contrast.
        max_new_tokens: of an answer, at most.
        batch: how many answers are written at once, at most, behind prompts of one length.
        unfinished: a file that takes down each case as it is found. Called again with it after it was killed, `pairs`
            goes on there, and writes once more no answers but those of the batch that it was at. The caller removes it.
        progress: called with how many prompts are done, and how many there are.

    Returns:
        A case each, in their order: of token ids, up to where the pair is, with target and contrast (ids) and further
        fields: ``pair`` ("roll-out", "stronger" or "given"), ``delta`` (the logit difference), ``target_text``,
        ``contrast_text``, ``generated`` (the wrong answer), ``asked`` (the prompt). Segments are spans of tokens there;
        what the model had written is the segment "completion". Cases without a pair, and those below the bound, have
        ``left_out``, which says why.

    Raises:
        ValueError, TypeError: for arguments that no pair could be made with.
    """
    question.check_model(model)
    if head_of(model).labels is not None or is_masked_language_model(model):
        raise TypeError(f"pairs are of answers, and {type(model).__name__} writes none: give a causal language model")
    reader = read_tokenizer(tokenizer)
    if reader is None:
        raise TypeError("pairs needs a tokenizer: answers are checked as text")
    for name, number in (("k", k), ("max_new_tokens", max_new_tokens), ("batch", batch)):
        if isinstance(number, bool) or not isinstance(number, int) or number < (2 if name == "k" else 1):
            raise ValueError(f"{name} must be a whole number, {2 if name == 'k' else 1} or more, not {number!r}")
    if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
        raise ValueError(f"bound must be a number, not {bound!r}")
    cases = read_cases(prompts)
    writer = Writer(model, reader, max_new_tokens, batch, ends_of(model))
    found: dict[str, dict] = {}
    read: dict[str, prompt.Prompt] = {}
    for case in cases:
        try:
            if case.left_out is not None:
                raise ValueError(case.left_out)
            _check_fields(case, checker)
            given = prompt.read(case.prompt, reader)
            _check_reach(given, 0 if "wrong" in case.fields else max_new_tokens, writer)
            read[case.id] = given
        except Exception as error:  # tokenizers and chat templates are foreign code
            found[case.id] = _left_out(case, sentence(error, "reading it failed", (ValueError, TypeError)))
    tell = progress or (lambda done, of: None)
    about = {"k": k, "bound": bound, "max_new_tokens": max_new_tokens, "checker": checker is not None}
    by_id = {case.id: case for case in cases}
    asked = {id: len(given.ids) for id, given in read.items() if "wrong" not in by_id[id].fields}
    with torch.no_grad(), journal.going_on(unfinished, model, cases, about) as (before, note):
        found |= before
        tell(len(found), len(cases))
        for ids in [*together(asked, batch), *([id] for id in read if id not in asked)]:
            if found.keys() >= set(ids):
                continue
            written = {}
            if ids[0] in asked:
                texts = generated([read[id].ids for id in ids], writer, max_new_tokens)
                written = dict(zip(ids, texts, strict=True))
            for id in ids:
                if id not in found:
                    found[id] = _found(by_id[id], read[id], written.get(id), checker, k, bound, writer)
                    note(found[id])
                    tell(len(found), len(cases))
    return [found[case.id] for case in cases]


def _found(
    case: Case,
    given: prompt.Prompt,
    written: list[int] | None,
    checker: Checker | None,
    k: int,
    bound: float,
    writer: Writer,
) -> dict:
    """What becomes of a prompt, whatever goes wrong with it alone."""
    try:
        pair, text = _pair(case, given, written, checker, k, writer)
        return _case(case, given, pair, text, bound, writer)
    except OSError:
        raise
    except Exception as error:
        if is_lost(error, writer.model):
            raise
        return _left_out(case, sentence(error, "looking for a pair failed", (ValueError, TypeError)))


def _check_fields(case: Case, checker: Checker | None) -> None:
    told = {"target": case.target is not None, "contrast": case.contrast is not None, "position": case.position != -1}
    if own := [name for name, is_told in told.items() if is_told]:
        raise ValueError(f"it has {' and '.join(own)}, which pairs looks for: leave it out, or run the case as it is")
    given = {name: case.fields[name] for name in ("answer", "pattern", "stronger", "wrong") if name in case.fields}
    for name, text in given.items():
        if not isinstance(text, str) or not text:
            raise TypeError(f"{name} must be a string that is not empty, not {text!r}")
    if "pattern" in given:
        try:
            regex.compile(given["pattern"])
        except regex.error as error:
            raise ValueError(f"pattern {given['pattern']!r} is no regular expression: {error}") from error
    if "wrong" in given:
        if not {"stronger", "answer"} & given.keys():
            raise ValueError("it has a wrong answer and no right one: give stronger or answer too")
    elif checker is None and not {"answer", "pattern"} & given.keys():
        raise ValueError("nothing says what a right answer is: give a checker, or the field answer or pattern")


def _check_reach(given: prompt.Prompt, more: int, writer: Writer) -> None:
    """ValueError for a prompt that the model cannot read, or not with so many tokens behind it."""
    question.check_ids(given.ids, writer.model, given, False)
    limit = position_limit(writer.model)
    if limit is not None and len(given.ids) + more > limit:
        raise ValueError(
            f"the prompt has {len(given.ids)} tokens, and with {more} of an answer behind them they are more than the "
            f"model's {limit} positions: shorten it, or give fewer max_new_tokens"
        )


def _is_right(case: Case, text: str, checker: Checker | None) -> bool:
    if checker is not None:
        try:
            return bool(checker({"id": case.id} | case.fields, text))
        except Exception as error:  # foreign code: what was written for the other prompts is not lost for it
            raise ValueError(f"the checker failed with {type(error).__name__} ({error})") from error
    if "pattern" in case.fields:
        try:
            return regex.search(case.fields["pattern"], text, timeout=_SECONDS) is not None
        except TimeoutError as error:
            raise ValueError(
                f"pattern {case.fields['pattern']!r} searched the answer {text!r} for more than {_SECONDS:g} s: write "
                "it without repeats of repeats"
            ) from error
    return text.strip() == case.fields["answer"].strip()


def _pair(
    case: Case, given: prompt.Prompt, written: list[int] | None, checker: Checker | None, k: int, writer: Writer
) -> tuple[Pair, str]:
    """The pair, and the wrong answer.

    Raises:
        ValueError: one sentence, if there is none.
    """
    if "wrong" in case.fields:
        text = case.fields["wrong"]
        right = case.fields.get("stronger", case.fields.get("answer"))
        return _parting(given, _ids("wrong", text, writer), right, "given", writer), text
    text = text_of(written, writer)
    if _is_right(case, text, checker):
        raise ValueError(f"the answer is right: {text!r}")
    pair = _walk(case, given.ids.tolist(), written, checker, k, writer)
    if pair is None and "stronger" in case.fields:
        pair = _parting(given, written, case.fields["stronger"], "stronger", writer)
    if pair is None:
        raise ValueError(
            f"no roll-out of the {k} best tokens at any of the {len(written)} positions passes, and there is no "
            "stronger model's answer"
        )
    return pair, text


def _walk(
    case: Case, ids: list[int], written: list[int], checker: Checker | None, k: int, writer: Writer
) -> Pair | None:
    prefix = Prefix(ids, writer)
    for t, own in enumerate(written):
        others = [one for one in best_of(prefix.logits, k).tolist() if one != own]
        left = writer.most - t - 1
        for start in range(0, len(others), writer.batch):
            some = others[start : start + writer.batch]
            for other, rest in zip(some, prefix.roll_out(some, left), strict=True):
                if _is_right(case, text_of([*written[:t], other, *rest], writer), checker):
                    delta = float(prefix.logits[own] - prefix.logits[other])
                    return Pair(written[:t], own, other, delta, "roll-out")
        if own in writer.ends or t == len(written) - 1:
            break
        prefix.step(own)
    return None


def _parting(given: prompt.Prompt, wrong: list[int], right: str, how: str, writer: Writer) -> Pair:
    """Where a right answer leaves a wrong one."""
    other = _ids("the right answer", right, writer)
    t = 0
    while t < min(len(wrong), len(other)) and wrong[t] == other[t]:
        t += 1
    if t == len(wrong) < len(other) and how != "given" and wrong[-1] not in writer.ends:
        raise ValueError(f"the right answer goes on where max_new_tokens, {writer.most}, cut the wrong one: give more")
    if t == len(other) and (t == len(wrong) or wrong[t] in writer.ends):
        raise ValueError(f"the right answer {right!r} and the wrong one never part: their tokens are the same")
    _check_reach(given, t, writer)
    logits = Prefix([*given.ids.tolist(), *wrong[:t]], writer).logits
    # Chats end otherwise than texts do: of several tokens that end an answer, the one that the model would take.
    end = max(sorted(writer.ends), key=lambda one: float(logits[one]), default=None)
    target, contrast = (one[t] if t < len(one) else end for one in (wrong, other))
    if target is None or contrast is None:
        raise ValueError(
            f"of the right answer {right!r} and the wrong one, one ends where the other goes on, and the model has no "
            "token that ends an answer: give answers that part before that"
        )
    return Pair(list(wrong[:t]), target, contrast, float(logits[target] - logits[contrast]), how)


def _case(case: Case, given: prompt.Prompt, pair: Pair, text: str, bound: float, writer: Writer) -> dict:
    length = len(given.ids)
    segments = {}
    if case.segments:
        segments = spans(divide(case.segments, given, None, writer.tokenizer, length))
    if pair.before and COMPLETION not in segments:
        segments[COMPLETION] = [[length, length + len(pair.before)]]
    texts = {f"{name}_text": writer.tokenizer.text([getattr(pair, name)]) for name in ("target", "contrast")}
    found = {"id": case.id, "input_ids": [*given.ids.tolist(), *pair.before]}
    found |= {"target": pair.target, "contrast": pair.contrast, "segments": segments}
    found |= case.fields | {"pair": pair.how, "delta": pair.delta, **texts, "generated": text, "asked": case.prompt}
    if not pair.delta > bound:
        found["left_out"] = f"the logit difference is {pair.delta:.4g}, which is not above the bound, {bound:g}"
    return found


def _left_out(case: Case, why: str) -> dict:
    fields = dict(case.fields)
    if case.prompt is not None:
        fields["asked"] = case.prompt
    return {"id": case.id, **fields, "left_out": why}


def _ids(name: str, text: str, writer: Writer) -> list[int]:
    return list(answers.read_ids(name, text, choices_of(writer.model, writer.tokenizer)))
