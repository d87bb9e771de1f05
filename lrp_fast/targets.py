"""What is explained: token ids, logits and positions, chosen by the caller or by the model itself."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import torch

from .tokenizer import BLANK, Tokenizer, plain_text
from .tokenizer import read as read_tokenizer


@dataclass(frozen=True)
class Token:
    """A next-token candidate; ``text`` is None without a tokenizer, ``rank`` 0 is the model's first choice."""

    id: int
    text: str | None
    logit: float
    rank: int


@dataclass(frozen=True)
class Term:
    """The share of one position in what is explained: ``value = target.logit - contrast_logit``.

    ``contrast`` is None for a plain logit and where the contrast is a mean over several tokens.
    """

    position: int  # index into the tokens; this position's next-token logits are meant
    target: Token
    contrast: Token | None
    contrast_logit: float | None  # what was subtracted; None for a plain logit
    runner_up: Token  # the best token other than the target


@dataclass(frozen=True)
class Explained:
    """What was explained: ``value`` is the sum of its terms, one per position.

    Attributes:
        kind: "logit", "difference" (of two tokens), "mean" (against the mean of all logits) or "top" (against the mean
            of the k > 1 best others).
        terms: one per position.
        best: the ten best next tokens at the last of the positions.
        note: what the reader should know, e.g. that strings were compared after a common prefix; may be empty.
        others: the k of kind "top"; None for the other kinds.
    """

    kind: str
    terms: list[Term]
    best: list[Token]
    note: str = ""
    others: int | None = None

    @classmethod
    def from_dict(cls, data: dict) -> Explained:
        """The inverse of ``dataclasses.asdict``.

        Raises:
            TypeError: one sentence, for what does not come from there: other names or types, numbers out of range,
                ranks, logits and tokens that contradict each other, a kind that its terms are not of.
        """
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
_KINDS = {"logit": (False, False), "difference": (True, True), "mean": (False, True), "top": (False, True)}


def _check(explained: Explained) -> None:
    """TypeError where the parts of ``explained`` contradict each other."""
    if explained.kind not in _KINDS:
        raise TypeError(f"explained.kind must be one of {', '.join(_KINDS)}")
    if (explained.others is not None) != (explained.kind == "top") or explained.others in (0, 1):
        raise TypeError('explained.others must be 2 or more of the kind "top", and null of the others')
    for i, term in enumerate(explained.terms):
        name = f"explained.terms[{i}]"
        if (term.contrast is not None, term.contrast_logit is not None) != _KINDS[explained.kind]:
            raise TypeError(f"{name} has not the contrast of the kind {explained.kind!r}")
        summed = (term.target.logit, 0.0 if term.contrast_logit is None else term.contrast_logit)
        if not all(map(math.isfinite, summed)):
            raise TypeError(f"{name} must have finite logits of target and contrast")
        highest = max(term.target.logit, term.runner_up.logit)
        if explained.kind in ("mean", "top") and summed[1] - highest > 1e-5 * abs(highest):  # it is rounded
            raise TypeError(f"{name}.contrast_logit must be a mean of logits, and is above the highest")
        if term.contrast is not None and term.contrast.logit != term.contrast_logit:
            raise TypeError(f"{name}.contrast_logit must be the contrast's logit")
        if term.contrast is not None and term.contrast.id == term.target.id:
            raise TypeError(f"{name} must have two different tokens for target and contrast")
        if term.runner_up.rank != (term.target.rank == 0):
            raise TypeError(f"{name}.runner_up must be the best token other than the target")
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
    return [term.target, term.runner_up, *([term.contrast] if term.contrast else [])]


def _check_ranks(tokens: list[Token], name: str) -> None:
    """The same rank is the same token with the same logit, and a better one has no smaller logit."""
    ordered = sorted(tokens, key=lambda token: token.rank)
    for better, worse in pairwise(ordered):
        same = (better.id, better.logit) == (worse.id, worse.logit)
        if better.logit < worse.logit or (better.rank == worse.rank and not same):
            raise TypeError(f"{name} ranks its tokens otherwise than by their logits")
    if len({token.rank for token in tokens}) != len({token.id for token in tokens}):
        raise TypeError(f"{name} gives one token two ranks")


@dataclass(frozen=True)
class Request:
    """A target and contrast that have been read and checked, before any logit is known.

    Attributes:
        target: token id, or None for the model's own first choice.
        contrast: token id, None (plain logit), "mean" or ("top", k).
        prefix: ids that belong behind the prompt, the common beginning of the strings that are compared.
        note: what the reader should know of all this.
    """

    target: int | None
    contrast: int | str | tuple[str, int] | None
    prefix: tuple[int, ...] = ()
    note: str = ""


def read(target, contrast, *, tokenizer=None, vocab_size: int) -> Request:
    """Check what the caller asks for (see `lrp_fast.attribute`) and turn strings into ids.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    tokenizer = read_tokenizer(tokenizer)
    if contrast is None or (isinstance(contrast, str) and contrast == "mean"):
        other = contrast
    elif isinstance(contrast, tuple) and len(contrast) == 2 and isinstance(contrast[0], str) and contrast[0] == "top":
        other = ("top", _count(contrast[1], vocab_size))
    else:
        other = _ids("contrast", contrast, tokenizer, vocab_size)
    ids = None if target is None else _ids("target", target, tokenizer, vocab_size)

    if not isinstance(other, tuple) or other[0] == "top":  # nothing to diverge from
        if ids is not None and len(ids) > 1:
            raise ValueError(
                f"target {target!r} is {len(ids)} tokens {list(ids)}, and no contrast says where to look: "
                "give a contrast string, or the id of one token"
            )
        return Request(ids[0] if ids else None, other)
    if ids is None:
        note = _first_token_note("contrast", contrast, other, tokenizer)
        return Request(None, other[0], note=note)

    shared = 0
    while shared < min(len(ids), len(other)) and ids[shared] == other[shared]:
        shared += 1
    if shared == min(len(ids), len(other)):
        raise ValueError(
            f"target {target!r} and contrast {contrast!r} never diverge: their tokens are {list(ids)} and {list(other)}"
        )
    note = ""
    if shared:
        count = f"{shared} token{'s' * (shared > 1)}"
        end = f"{tokenizer.named(ids[:shared])}, which now end{'s' * (shared == 1)} the prompt"
        note = f"{target!r} and {contrast!r} share their first {count} {end}; compared at the next one."
    elif max(len(ids), len(other)) > 1:
        longer = [
            _first_token_note(name, given, found, tokenizer)
            for name, given, found in (("target", target, ids), ("contrast", contrast, other))
        ]
        note = " ".join(filter(None, longer))
    return Request(ids[shared], other[shared], ids[:shared], note)


def several(name: str, given):
    """What was handed in as a target or contrast, an array of ids as the id, or the list of ids, that it holds.

    Raises:
        TypeError: for an array of other numbers, or of more dimensions than one.
    """
    if not hasattr(given, "dtype") or not hasattr(given, "tolist") or isinstance(given, str):
        return given
    try:
        found, of_text = given.tolist(), getattr(given.dtype, "kind", "") in ("U", "O")
    except (RuntimeError, TypeError, ValueError) as error:
        how = f"of layout {getattr(given, 'layout', None)} on {getattr(given, 'device', None)}"
        raise TypeError(f"{name} is a tensor {how}, which holds no list of numbers: give a token id") from error
    if not of_text and not _are_whole(found):
        choices = 'a token id or a string, "mean" or ("top", k)' if name == "contrast" else "a token id or a string"
        raise TypeError(f"{name} must be {choices}, not {given!r}")
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, list) and any(isinstance(one, list) for one in found):
        raise TypeError(f"{name} is an array of shape {tuple(given.shape)}: give one id, or a list of them")
    return found


def _are_whole(found) -> bool:
    if isinstance(found, list):
        return all(map(_are_whole, found))
    return isinstance(found, int) and not isinstance(found, bool)


def _ids(name: str, given, tokenizer: Tokenizer | None, vocab_size: int) -> tuple[int, ...]:
    if isinstance(given, str):
        if tokenizer is None:
            raise ValueError(f"{name} {given!r} is a string: give tokenizer= with it, or a token id")
        given = plain_text(given, name)
        ids = made = tuple(tokenizer.encode(given, f"{name} {given!r}", added=False))
        pieces = tokenizer.pieces(list(made))
        blank = given.startswith(" ") and len(ids) > 1 and pieces[0] == BLANK
        if blank and (pieces[1] or "").startswith(BLANK):
            ids = ids[1:]  # SentencePiece puts a blank before every text: of " word" it makes two
        if not ids:
            raise ValueError(f"{name} {given!r} is no token at all: give a string that the tokenizer does not drop")
        unknown = tokenizer.unknown
        if unknown is not None and unknown[0] in ids and unknown[1] not in given:
            pieces = [piece or tokenizer.text([one]) for one, piece in zip(made, pieces, strict=True)]
            raise ValueError(
                f"{name} {given!r} holds what the tokenizer does not know, and becomes {pieces}: give a string that it "
                "knows, or a token id"
            )
        dropped = tokenizer.dropped(given, list(made))
        if dropped:
            raise ValueError(
                f"{name} {given!r} holds {dropped[0]!r}, which the tokenizer drops: give a string without it, or a "
                "token id"
            )
        wrong = [one for one in ids if not 0 <= one < vocab_size]
        if wrong:
            raise ValueError(
                f"{name} {given!r} becomes token {wrong[0]}, outside the model's vocabulary, 0 to {vocab_size - 1}: "
                "give the tokenizer that belongs to the model"
            )
        return ids
    if isinstance(given, bytes | bytearray | memoryview):
        raise TypeError(f"{name} is {type(given).__name__}, which is no text yet: decode it, as .decode('utf-8') does")
    try:
        one = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        one = None
    if one is None:
        choices = 'a token id or a string, "mean" or ("top", k)' if name == "contrast" else "a token id or a string"
        raise TypeError(f"{name} must be {choices}, not {given!r}")
    if not 0 <= one < vocab_size:
        raise ValueError(f"{name} {one} is outside the vocabulary, 0 to {vocab_size - 1}")
    return (one,)


def _count(k, vocab_size: int) -> int:
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f'contrast ("top", k) takes a whole number k, not {k!r}')
    if not 1 <= int(k) < vocab_size:
        raise ValueError(f'contrast ("top", {k}) needs k from 1 to {vocab_size - 1}, all tokens but the target')
    return int(k)


def _first_token_note(name: str, given, ids: tuple[int, ...], tokenizer: Tokenizer | None) -> str:
    if len(ids) == 1:
        return ""
    return f"{name} {given!r} is {len(ids)} tokens; its first, {tokenizer.named(ids[:1])}, is compared."


def explain(
    request: Request, logits: torch.Tensor, positions: list[int], tokenizer=None
) -> tuple[torch.Tensor, Explained]:
    """The scalar to explain, differentiable in ``logits`` (P, V), and its description. One term a position.

    Raises:
        ValueError: for a logit that is not a number.
    """
    if not torch.isfinite(logits).all():
        raise ValueError(f"the logits hold {_flaw(logits)}: nothing can be explained; {_mend(logits)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokenizer = read_tokenizer(tokenizer)
    known = logits.detach()

    def token(row: int, one: int, rank: int | None = None) -> Token:
        text = None if tokenizer is None else tokenizer.text([one])
        return Token(one, text, float(known[row, one]), _rank(known[row], one) if rank is None else rank)

    terms, total = [], logits.new_zeros(())
    for row, position in enumerate(positions):
        best = _best(known[row], 2).tolist()
        target = best[0] if request.target is None else request.target
        runner_up = best[1] if target == best[0] else best[0]
        contrast, against = None, None
        match request.contrast:
            case None:
                pass
            case "mean":
                against = logits[row].mean()
            case ("top", k):
                others = _best(known[row], k + 1)
                against = logits[row, others[others != target][:k]].mean()
                contrast = token(row, runner_up) if k == 1 else None
            case one:
                if one == target:
                    raise ValueError(
                        f"target and contrast are both token {target} {token(row, one).text!r} at position {position}: "
                        "they never diverge; give two different tokens"
                    )
                contrast, against = token(row, one), logits[row, one]
        total = total + logits[row, target] - (0 if against is None else against)
        terms.append(
            Term(
                position=position,
                target=token(row, target),
                contrast=contrast,
                contrast_logit=None if against is None else float(against.detach()),
                runner_up=token(row, runner_up),
            )
        )
    kind = _kind(request)
    best = [token(-1, one, rank) for rank, one in enumerate(_best(known[-1], 10).tolist())]
    return total, Explained(kind, terms, best, request.note, request.contrast[1] if kind == "top" else None)


# To sort all of a vocabulary takes longer than the rest of a short prompt's bookkeeping together.


def _best(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` best of (V,) logits, best first; of equal ones the lower id is the better."""
    least = logits.topk(min(count, len(logits))).values[-1]
    among = (logits >= least).nonzero().squeeze(-1)
    return among[logits[among].argsort(descending=True, stable=True)][:count]


def _rank(logits: torch.Tensor, one: int) -> int:
    """How many are better than this one."""
    own = logits[one]
    return int((logits > own).sum() + (logits[:one] == own).sum())


def _kind(request: Request) -> str:
    match request.contrast:
        case None:
            return "logit"
        case "mean":
            return "mean"
        case ("top", k) if k > 1:
            return "top"
    return "difference"


def _flaw(logits: torch.Tensor) -> str:
    return "NaN" if logits.isnan().any() else "infinities"


def _mend(logits: torch.Tensor) -> str:
    if logits.dtype == torch.float16:
        return "load the model in float32 or bfloat16"
    dtype = str(logits.dtype).removeprefix("torch.")
    return f"the model's weights, or what it computes of them in {dtype}, give that: look for such among the weights"
