"""A whole answer as what is explained: its tokens behind the prompt, each at the position that predicts it."""

from __future__ import annotations

from dataclasses import replace

from . import targets
from .choices import Vocabulary
from .targets import Request
from .tokenizer import Tokenizer

_WORDS = {"logit": "logits", "logprob": "log-probabilities"}


def read(answer, target, contrast, choices: Vocabulary, by_token: bool = False) -> list[Request]:
    """What ``answer``, and ``contrast`` as a second answer, ask for (see `lrp_fast.attribute`): one request, or one for
    each token.

    Its prefix is all of the answer but the last token, which nothing that is explained reads. With ``each`` it asks for
    every token of the answer, at positions from the prompt's last on; without, at the last position alone, for the
    difference of two answers where they diverge.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    if target is not None:
        raise ValueError("target and answer both say what is explained: give one of them")
    logprob = targets.is_pair(answer, "logprob")
    said = answer[1] if logprob else answer
    ids = read_ids("answer", said, choices)
    plain = contrast is None or targets.is_pair(contrast, "top") or (isinstance(contrast, str) and contrast == "mean")
    if not plain and not logprob:
        if by_token:
            raise ValueError(
                "by_token explains every token of one answer, and the contrast is a second one: leave either out"
            )
        other = read_ids("contrast", contrast, choices)
        return [targets.diverging(("answer", said, ids), ("contrast", contrast, other), choices)]
    request = targets.read(("logprob", ids) if logprob else ids, contrast, choices)
    if by_token:
        return [
            replace(one, prefix=ids[:-1], note=f"Token {row + 1} of an answer of {len(ids)}.", row=row)
            for row, one in enumerate(request.each)
        ]
    note = ""
    if len(ids) > 1:
        what = _WORDS["logprob" if logprob else "logit"] if contrast is None else "differences"
        note = (
            f"The answer is {len(ids)} tokens, all but the last of which now end the prompt; explained is the sum of "
            f"their {what}."
        )
    return [Request(None, None, ids[:-1], note, each=request.each)]


def at_the_seam(answer, text: str | None, tokenizer: Tokenizer | None) -> str:
    """A note where a prompt of this text and the answer behind it would be other tokens if they were written as one."""
    said = answer[1] if targets.is_pair(answer, "logprob") else answer
    if tokenizer is None or not text or not isinstance(said, str):
        return ""
    name = f"answer {said!r}"
    apart = [one for part in (text, said) for one in tokenizer.encode(part, name, added=False)]
    if tokenizer.encode(text + said, name, added=False) == apart:
        return ""
    return (
        "Written as one text, the prompt and the answer would be other tokens where they meet: what is explained is "
        "the answer as it stands alone, behind the prompt as it stands alone."
    )


def read_ids(name: str, given, choices: Vocabulary) -> tuple[int, ...]:
    """The token ids of a string, of a sequence or an array of them, or of one id.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    given = targets.several(name, given)
    if not isinstance(given, list | tuple):
        return choices.ids_of(name, given)
    if not given:
        raise ValueError(f"{name} is empty: give at least one token")
    if any(isinstance(one, str) for one in given):
        raise TypeError(f"{name} is a list of strings, and one {name} is meant: give one string, or token ids")
    return tuple(one for each in given for one in choices.ids_of(name, each))
