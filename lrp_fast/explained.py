"""What was explained, in ids, words and numbers: what a result carries, and a file holds, of it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from types import UnionType
from typing import get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Token:
    """A candidate: a next token, or a label. ``text`` is a label's name, None of a token without a tokenizer; ``rank``
    0 is the model's first choice."""

    id: int
    text: str | None
    logit: float
    rank: int


@dataclass(frozen=True)
class Term:
    """The share of one position in what is explained: ``value = target.logit - contrast_logit``.

    ``contrast`` is None for a plain logit, for a log-probability, and where the contrast is a mean over several tokens.
    Of a function of the logits a term says the position alone: its target is the model's first choice there.
    """

    position: int  # index into the tokens; this position's logits are meant
    target: Token
    contrast: Token | None
    contrast_logit: float | None  # what was subtracted, log(sum(exp(logits))) of a log-probability; None if nothing was
    runner_up: Token | None  # the best candidate other than the target; None where there is no other


@dataclass(frozen=True)
class Explained:
    """What was explained: ``value`` is the sum of its terms, one per position, but for the kind "function".

    Attributes:
        kind: "logit", "difference" (of two tokens), "mean" (against the mean of all logits), "top" (against the mean
            of the k > 1 best others), "logprob" (the target's log-probability) or "function" (the caller's own, of the
            logits at all these positions; the note names it).
        terms: one per position.
        best: the ten best candidates at the last of the positions.
        note: what the reader should know, e.g. that strings were compared after a common prefix; may be empty.
        others: the k of kind "top"; None for the other kinds.
        of: what the candidates are, "token" (the next one), "masked token" (the one at the position) or "label".
    """

    kind: str
    terms: list[Term]
    best: list[Token]
    note: str = ""
    others: int | None = None
    of: str = "token"

    def as_dict(self) -> dict:
        """What ``dataclasses.asdict`` makes of it, in a twentieth of the time: a study writes thousands."""

        def term(one: Term) -> dict:
            tokens = {name: getattr(one, name) for name in ("target", "contrast", "runner_up")}
            return vars(one) | {name: token and {**vars(token)} for name, token in tokens.items()}

        return vars(self) | {"terms": list(map(term, self.terms)), "best": [{**vars(one)} for one in self.best]}

    @classmethod
    def from_dict(cls, data: dict) -> Explained:
        """The inverse of `as_dict`.

        Raises:
            TypeError: one sentence, for what does not come from there: other names or types, numbers out of range,
                ranks, logits and tokens that contradict each other, a kind that its terms are not of.
        """
        if isinstance(data, dict):
            data = {"of": "token"} | data  # which was not said before there were labels
        found = _read(cls, data, "explained")
        _check(found)
        return found


@functools.cache
def _parts(hint: type) -> dict[str, type]:
    return get_type_hints(hint)


def _read(hint, value, name: str):
    """``value``, of dicts, lists and scalars, as the type that ``hint`` declares; it is called ``name`` in errors."""
    if is_dataclass(hint):
        parts = _parts(hint)
        if not isinstance(value, dict) or value.keys() != parts.keys():
            raise TypeError(f"{name} must hold {', '.join(parts)}, and nothing else")
        return hint(**{part: _read(parts[part], value[part], f"{name}.{part}") for part in parts})
    if get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise TypeError(f"{name} must be a list that is not empty")
        return [_read(*get_args(hint), one, f"{name}[{i}]") for i, one in enumerate(value)]
    if get_origin(hint) is UnionType:  # with None
        return None if value is None else _read(get_args(hint)[0], value, name)
    if hint is str:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string")
        return value
    if isinstance(value, bool) or not isinstance(value, int | hint):
        raise TypeError(f"{name} must be a {'whole ' * (hint is int)}number")
    if hint is int:
        if not 0 <= value < 2**63:
            raise TypeError(f"{name} must be 0 or above and below 2**63")
        return value
    try:
        value = float(value)
    except OverflowError:
        value = math.nan
    if math.isnan(value) or value == math.inf:
        raise TypeError(f"{name} must be a logit: finite, or -Infinity of a masked token")
    return value


# What a kind says of its terms: whether they have a contrast, and whether they have its logit.
_KINDS = {
    "logit": (False, False),
    "difference": (True, True),
    "mean": (False, True),
    "top": (False, True),
    "logprob": (False, True),
    "function": (False, False),
}


_CANDIDATES = ("token", "masked token", "label")


def _check(explained: Explained) -> None:
    """TypeError where the parts of ``explained`` contradict each other."""
    if explained.kind not in _KINDS:
        raise TypeError(f"explained.kind must be one of {', '.join(_KINDS)}")
    if explained.of not in _CANDIDATES:
        raise TypeError(f"explained.of must be one of {', '.join(_CANDIDATES)}")
    if (explained.others is not None) != (explained.kind == "top") or explained.others in (0, 1):
        raise TypeError('explained.others must be 2 or more of the kind "top", and null of the others')
    for i, term in enumerate(explained.terms):
        name = f"explained.terms[{i}]"
        if (term.contrast is not None, term.contrast_logit is not None) != _KINDS[explained.kind]:
            raise TypeError(f"{name} has not the contrast of the kind {explained.kind!r}")
        summed = (term.target.logit, 0.0 if term.contrast_logit is None else term.contrast_logit)
        if not all(map(math.isfinite, summed)):
            raise TypeError(f"{name} must have finite logits of target and contrast")
        if (term.runner_up is None) != (len(explained.best) == 1):
            raise TypeError(f"{name}.runner_up must be the best {explained.of} other than the target, null if none is")
        highest = max(term.target.logit, -math.inf if term.runner_up is None else term.runner_up.logit)
        if explained.kind in ("mean", "top") and summed[1] - highest > 1e-5 * abs(highest):  # it is rounded
            raise TypeError(f"{name}.contrast_logit must be a mean of logits, and is above the highest")
        if explained.kind == "logprob" and highest - summed[1] > 1e-5 * abs(highest):
            raise TypeError(f"{name}.contrast_logit must be the log of a sum over all tokens, and is below the highest")
        if explained.kind == "function" and term.target.rank != 0:
            raise TypeError(f"{name}.target must be the model's first choice, as a function has no target of its own")
        if term.contrast is not None and term.contrast.logit != term.contrast_logit:
            raise TypeError(f"{name}.contrast_logit must be the contrast's logit")
        if term.contrast is not None and term.contrast.id == term.target.id:
            raise TypeError(f"{name} must have two different tokens for target and contrast")
        if term.runner_up is not None and term.runner_up.rank != (term.target.rank == 0):
            raise TypeError(f"{name}.runner_up must be the best {explained.of} other than the target")
        _check_ranks(_tokens(term), name)
    if len({term.position for term in explained.terms}) < len(explained.terms):
        raise TypeError("explained.terms must not name a position twice")
    if [token.rank for token in explained.best] != list(range(len(explained.best))):
        raise TypeError("explained.best must be the best tokens in their order, ranks 0, 1, 2 and so on")
    _check_ranks(explained.best, "explained.best")
    last = _tokens(explained.terms[-1])
    if any((token.id == one.id) != (token.rank == one.rank) for token in last for one in explained.best):
        raise TypeError("explained.best must be of the last term's position, and ranks other tokens than that does")
    _check_ranks([*explained.best, *last], "explained.best with the last term's")
    texts: dict[int, str | None] = {}
    for token in (*explained.best, *(token for term in explained.terms for token in _tokens(term))):
        if texts.setdefault(token.id, token.text) != token.text:
            raise TypeError(f"explained gives token {token.id} two texts")


def _tokens(term: Term) -> list[Token]:
    """All that a term tells of its position's candidates."""
    return [one for one in (term.target, term.runner_up, term.contrast) if one is not None]


def _check_ranks(tokens: list[Token], name: str) -> None:
    """The same rank is the same token with the same logit, and a better one has no smaller logit."""
    ordered = sorted(tokens, key=lambda token: token.rank)
    for better, worse in pairwise(ordered):
        same = (better.id, better.logit) == (worse.id, worse.logit)
        if better.logit < worse.logit or (better.rank == worse.rank and not same):
            raise TypeError(f"{name} ranks its tokens otherwise than by their logits")
    if len({token.rank for token in tokens}) != len({token.id for token in tokens}):
        raise TypeError(f"{name} gives one token two ranks")
