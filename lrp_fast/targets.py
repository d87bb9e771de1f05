"""What is to be explained: the caller's targets and contrasts read and checked, and what scalar they make of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .choices import EXPECTED, Choices
from .explained import Explained, Term, Token
from .reading import cut


@dataclass(frozen=True)
class Request:
    """A target and contrast that have been read and checked, before any logit is known.

    Attributes:
        target: token id, or None for the model's own first choice.
        contrast: token id, None (plain logit), "mean" or ("top", k).
        prefix: ids that belong behind the prompt, the common beginning of the strings that are compared.
        note: what the reader should know of all this.
        logprob: whether the target's log-probability is meant, which has no contrast.
        each: a request for each position, all of one kind, which then says what is meant there; empty for one that
            holds at every position.
        function: of the logits, in place of a target and a contrast.
        row: the one of the positions that is meant; None: all.
    """

    target: int | None
    contrast: int | str | tuple[str, int] | None
    prefix: tuple[int, ...] = ()
    note: str = ""
    logprob: bool = False
    each: tuple[Request, ...] = ()
    function: Callable[[torch.Tensor], torch.Tensor] | None = None
    row: int | None = None


def read(target, contrast, choices: Choices) -> Request:
    """Check what the caller asks for (see `lrp_fast.attribute`) and turn strings into ids.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    if is_pair(target, "logprob"):
        return _log_probability(target[1], contrast, choices)
    if isinstance(target, tuple):
        return _one_each(target, contrast, choices)
    if callable(target):
        return _of_function(target, contrast, choices)
    choices.check(contrast, logprob=False)
    if contrast is None or (isinstance(contrast, str) and contrast == "mean"):
        other = contrast
    elif is_pair(contrast, "top"):
        other = ("top", _count(contrast[1], choices))
    else:
        other = choices.ids_of("contrast", contrast)
    ids = None if target is None else choices.ids_of("target", target)

    if not isinstance(other, tuple) or other[0] == "top":  # nothing to diverge from
        if ids is not None and len(ids) > 1:
            others = "or the id of one token"
            if choices.what == "token":  # others are not answered with
                others = "the id of one token, or answer= for all of them"
            raise ValueError(
                f"target {target!r} is {len(ids)} tokens {list(ids)}, and no contrast says where to look: "
                f"give a contrast string, {others}"
            )
        return Request(ids[0] if ids else None, other)
    if ids is None:
        note = _first_token_note("contrast", contrast, other, choices)
        return Request(None, other[0], note=note)
    return diverging(("target", target, ids), ("contrast", contrast, other), choices)


def diverging(one: tuple, another: tuple, choices: Choices) -> Request:
    """The difference at the first token in which two texts differ, behind what they share; name, text and ids of each.

    Raises:
        ValueError: if one of them is the other's beginning.
    """
    (name, target, ids), (other_name, contrast, other) = one, another
    target, contrast = cut(repr(target)), cut(repr(contrast))
    shared = 0
    while shared < min(len(ids), len(other)) and ids[shared] == other[shared]:
        shared += 1
    if shared == min(len(ids), len(other)):
        raise ValueError(
            f"{name} {target} and {other_name} {contrast} never diverge: their {choices.what}s are "
            f"{cut(str(list(ids)))} and {cut(str(list(other)))}"
        )
    note = ""
    if shared:
        count = f"{shared} token{'s' * (shared > 1)}"
        end = f"{choices.named(ids[:shared])}, which now end{'s' * (shared == 1)} the prompt"
        note = f"{target} and {contrast} share their first {count} {end}; compared at the next one."
    elif max(len(ids), len(other)) > 1:
        longer = [
            _first_token_note(name, given, found, choices)
            for name, given, found in (one, another)
        ]
        note = " ".join(filter(None, longer))
    return Request(ids[shared], other[shared], tuple(ids[:shared]), note)


def is_pair(given, word: str) -> bool:
    """Whether it is ``(word, something)``, as ("top", 3) is and ("logprob", 5)."""
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str) and given[0] == word


def _log_probability(target, contrast, choices: Choices) -> Request:
    if contrast is not None:
        raise ValueError(
            "a log-probability takes no contrast, as two of them differ by what their logits differ by: leave out "
            'either the contrast or "logprob"'
        )
    if isinstance(target, tuple) and not is_pair(target, "logprob"):
        return _one_each(tuple(("logprob", one) for one in target), None, choices)
    if isinstance(target, tuple) or callable(target):
        raise TypeError(f'target ("logprob", token) takes a token id or a string, or None, not {target!r}')
    choices.check(None, logprob=True)
    return replace(read(target, None, choices), logprob=True)


def _one_each(target: tuple, contrast, choices: Choices) -> Request:
    """Of a target for each position, and a contrast for each or one for all."""
    if not target:
        raise ValueError("target is an empty tuple: give a target for each position")
    several = isinstance(contrast, tuple) and not is_pair(contrast, "top")
    if several and len(contrast) != len(target):
        raise ValueError(
            f"target is a tuple of {len(target)} and contrast one of {len(contrast)}, one a position: give as many of "
            "both"
        )
    each = []
    for one, other in zip(target, contrast if several else (contrast,) * len(target), strict=True):
        if (isinstance(one, tuple) and not is_pair(one, "logprob")) or callable(one):
            raise TypeError(f"target is a tuple, one a position, and holds {one!r}: a token id or a string is meant")
        each.append(read(one, other, choices))
        if each[-1].prefix:
            raise ValueError(
                f"target {one!r} and contrast {other!r} begin alike, so they cannot be compared at one position among "
                "others: give strings that differ in their first token, or ids"
            )
    kinds = list(dict.fromkeys(map(_kind, each)))
    if len(kinds) > 1:
        one, other = (" ".join(map(str, kind)) for kind in kinds[:2])
        raise ValueError(
            f"the positions' targets are of different kinds, {one} and {other}: explain them one by one, or give a "
            "function of the logits"
        )
    note = " ".join(dict.fromkeys(request.note for request in each if request.note))
    return Request(None, None, note=note, each=tuple(each))


def _of_function(function: Callable, contrast, choices: Choices) -> Request:
    if contrast is not None:
        raise ValueError("a function of the logits says by itself what is compared: leave the contrast out")
    note = (
        f"What is explained is {_name(function)}, a function of the logits: the {choices.what}s named here are the "
        "model's first choices."
    )
    return Request(None, None, note=note, function=function)


def _name(function: Callable) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


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
        raise TypeError(f"{name} must be {EXPECTED[name]}, not {given!r}")
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, list) and any(isinstance(one, list) for one in found):
        raise TypeError(f"{name} is an array of shape {tuple(given.shape)}: give one id, or a list of them")
    return found


def _are_whole(found) -> bool:
    if isinstance(found, list):
        return all(map(_are_whole, found))
    return isinstance(found, int) and not isinstance(found, bool)


def _count(k, choices: Choices) -> int:
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f'contrast ("top", k) takes a whole number k, not {k!r}')
    if not 1 <= int(k) < choices.size:
        most = f"{choices.size - 1}, all {choices.what}s but the target"
        raise ValueError(f'contrast ("top", {k}) needs k from 1 to {most}')
    return int(k)


def _first_token_note(name: str, given, ids: tuple[int, ...], choices: Choices) -> str:
    if len(ids) == 1:
        return ""
    return f"{name} {cut(repr(given))} is {len(ids)} tokens; its first, {choices.named(ids[:1])}, is compared."


def explain(
    request: Request, logits: torch.Tensor, positions: list[int], choices: Choices
) -> tuple[torch.Tensor, Explained]:
    """The scalar to explain, differentiable in ``logits`` (P, V), and its description. One term a position.

    Raises:
        ValueError: for a logit that is not a number, and for a function of the logits that gives no scalar of them.
    """
    check_finite(logits)
    if request.row is not None:
        logits, positions = logits[request.row : request.row + 1], [positions[request.row]]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = logits.detach()

    def token(row: int, one: int, rank: int | None = None) -> Token:
        return Token(one, choices.text(one), float(known[row, one]), _rank(known[row], one) if rank is None else rank)

    terms, total = [], logits.new_zeros(())
    own = logits.unbind(0)  # whose gradients are put together once: a row taken from all fills all with zeros
    for row, position in enumerate(positions):
        asked = request.each[row] if request.each else request
        best = best_of(known[row], 2).tolist()
        target = best[0] if asked.target is None else asked.target
        runner_up = best[-1] if target == best[0] else best[0]
        contrast, against = None, None
        match asked.contrast:
            case None:
                against = own[row].logsumexp(-1) if asked.logprob else None
            case "mean":
                against = own[row].mean()
            case ("top", k):
                against = own[row][others(known[row], target, k)].mean()
                contrast = token(row, runner_up) if k == 1 else None
            case one:
                if one == target:
                    raise ValueError(
                        f"target and contrast are both {choices.what} {target} {choices.text(one)!r} at position "
                        f"{position}: they never diverge; give two different {choices.what}s"
                    )
                contrast, against = token(row, one), own[row][one]
        total = total + own[row][target] - (0 if against is None else against)
        terms.append(
            Term(
                position=position,
                target=token(row, target),
                contrast=contrast,
                contrast_logit=None if against is None else float(against.detach()),
                runner_up=None if runner_up == target else token(row, runner_up),
            )
        )
    if request.function is not None:
        total = _scalar(request.function, logits)
    kind = _kind(request)
    best = [token(-1, one, rank) for rank, one in enumerate(best_of(known[-1], 10).tolist())]
    return total, Explained(kind[0], terms, best, request.note, kind[1] if len(kind) > 1 else None, choices.what)


def _scalar(function: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """What the caller's function makes of the logits.

    Raises:
        ValueError: one sentence, never a TypeError: of a batch, the row that it goes wrong at is known only now.
    """
    said = f"target, the function {_name(function)},"
    given = logits.clone()  # which it may write into: other targets read the same logits
    try:
        found = function(given)
    except Exception as error:  # the caller's code
        reason = (str(error).strip().splitlines() or [""])[0]
        shape = tuple(logits.shape)
        raise ValueError(f"{said} failed at logits of shape {shape}: {type(error).__name__}: {reason}") from error
    if not isinstance(found, torch.Tensor) or found.shape != () or not found.is_floating_point():
        what = f"a {type(found).__name__}"
        if isinstance(found, torch.Tensor):
            what = f"a tensor of shape {tuple(found.shape)} and {found.dtype}"
        raise ValueError(f"{said} gave {what}: it must give one number as a tensor without dimensions, as .sum() does")
    g = None
    if found.requires_grad and found.grad_fn is not None:  # a view made under no_grad has the one without the other
        (g,) = torch.autograd.grad(found, logits, retain_graph=True, allow_unused=True)
    if g is None:
        raise ValueError(
            f"{said} gave what does not depend on the logits: compute it from them in torch, without detach or item"
        )
    if not found.isfinite() or not g.isfinite().all():
        raise ValueError(f"{said} gave {found.item()}, which has no finite gradient at these logits: mend it there")
    return found


def others(logits: torch.Tensor, target: int, k: int) -> torch.Tensor:
    """The ``k`` best of (V,) logits other than the target's: what the contrast ("top", k) is the mean of."""
    best = best_of(logits, k + 1)
    return best[best != target][:k]


# To sort all of a vocabulary takes longer than the rest of a short prompt's bookkeeping together.


def best_of(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` best of (V,) logits, best first; of equal ones the lower id is the better."""
    least = logits.topk(min(count, len(logits))).values[-1]
    among = (logits >= least).nonzero().squeeze(-1)
    return among[logits[among].argsort(descending=True, stable=True)][:count]


def _rank(logits: torch.Tensor, one: int) -> int:
    """How many are better than this one."""
    own = logits[one]
    return int((logits > own).sum() + (logits[:one] == own).sum())


def _kind(request: Request) -> tuple[str] | tuple[str, int]:
    """As of `Explained`, with the number of others where that counts."""
    if request.function is not None:
        return ("function",)
    if request.each:
        return _kind(request.each[0])
    match request.contrast:
        case None:
            return ("logprob" if request.logprob else "logit",)
        case "mean":
            return ("mean",)
        case ("top", k) if k > 1:
            return ("top", k)
    return ("difference",)


def check_finite(logits: torch.Tensor) -> None:
    """ValueError for a logit that is not a number."""
    if not torch.isfinite(logits).all():
        flaw = "NaN" if logits.isnan().any() else "infinities"
        raise ValueError(f"the logits hold {flaw}: nothing can be explained; {_mend(logits)}")


def _mend(logits: torch.Tensor) -> str:
    if logits.dtype == torch.float16:
        return "load the model in float32 or bfloat16"
    dtype = str(logits.dtype).removeprefix("torch.")
    return f"the model's weights, or what it computes of them in {dtype}, give that: look for such among the weights"
