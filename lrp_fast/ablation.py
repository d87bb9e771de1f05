"""`ablate`: a part of the model's computation is cut, and the same question is asked again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import prompt, question, targets
from .again import again, check_same, of_result
from .attribution import Attribution
from .explained import Explained
from .hf import (
    Pair,
    Place,
    changing,
    check_heads,
    check_pairs,
    decoder_layers,
    device_of,
    keeping_rotations,
    layer_sizes,
    logits_at,
    neurons,
    passing,
    reads_causally,
)
from .question import Question
from .rules import Rules
from .sources import divide

_KINDS = {  # what each is a list of
    "tokens": "positions",
    "sources": "names of the result's sources, or a dict of spans",
    "nodes": "(layer, position)",
    "edges": "(layer, source, target) or (layer, source, target, head)",
    "heads": "(layer, head)",
    "neurons": "(layer, index)",
}
_NEAR = dict.fromkeys(["zero", "zeros", "zeroes"], "zero") | dict.fromkeys(["mean", "means", "average", "avg"], "mean")
_AXES = {"tokens": 1, "nodes": 1, "heads": 1, "neurons": -1}  # of what is chosen from, in the tensor of a `Place`


@dataclass(frozen=True, eq=False)
class Ablation:
    """What a question comes to where a part of the model is cut.

    Attributes:
        value: of the question, cut.
        before: of the question, whole: what `lrp_fast.attribute` distributes.
        predicted: the change that relevance predicts, minus the relevance of what was cut; None where it predicts none:
            without a result of `attribute`, for another replacement than zero, for heads and neurons, for parts of
            several layers (what flows through both would count twice) or kinds, for an edge of one head, for one that
            the result's graph does not keep, and for tokens whose input embedding is not all that layer 0 is given of
            them, as where learned positions are added (GPT-2): the relevance is of all, name nodes of layer 0 there.
        explained: the question and what the whole model says to it.
        after: the same question's terms, and the best next tokens, as the cut model has them.
    """

    value: float
    before: float
    predicted: float | None
    explained: Explained
    after: Explained

    @property
    def change(self) -> float:
        """``value - before``."""
        return self.value - self.before


class _Cut(NamedTuple):
    """What is cut: at each place which entries, and of each layer which edges."""

    entries: dict[Place, list[int]]
    edges: dict[int, list[Pair]]


def ablate(
    model,
    input_ids,
    what: Mapping,
    replacement="zero",
    target=None,
    contrast=None,
    position=-1,
    result: Attribution | None = None,
    tokenizer=None,
    answer=None,
) -> Ablation:
    """Cut a part of the model's computation, and see what becomes of the decision.

        lrp_fast.ablate(model, prompt, {"tokens": [4]}, target=5, contrast=7)
        lrp_fast.ablate(model, prompt, {"edges": [(12, 3, 28)], "heads": [(12, 0)]}, result=result)

    Two forward passes without autograd (three with another prompt), which no memory budget bounds, of a model that is
    patched and left as it was, as by `lrp_fast.patched`; other threads may run it meanwhile.

    Args:
        what: a dict of lists, of any of these; layers are counted as in `lrp_fast.Graph`, positions, from the end where
            negative. ``"tokens"``: positions, whose input embeddings are replaced (learned positions stay).
            ``"sources"``: names of ``result.sources``, or a dict of spans as `attribute` takes it: their tokens.
            ``"nodes"``: (layer, position), hidden states as decoder layer ``layer`` is given them, for layer L as the
            last one puts them out. ``"edges"``: (layer, source, target), the target's query does without the source's
            key and value in the attention of decoder layer ``layer``, in all heads or, (layer, source, target, head),
            in one; its other weights grow to a sum of 1. ``"heads"``: (layer, head), what it reads, at all positions.
            ``"neurons"``: (layer, index), an input of the MLP's down projection, at all positions.
        replacement: ``"zero"``, ``"mean"`` (of the same tensor over the prompt's positions), or another prompt of as
            many tokens, what is read of an answer included, whose own stand in. Edges are hidden, and take none.
        target, contrast, position, answer: the question, as in `attribute`, for one decision; what the model itself
            chooses (its top-1, the k best others) it chooses whole.
        result: what `attribute` found of the same model and prompt: its question is asked, instead of the four above,
            and its relevance gives ``predicted``. Of a function of the logits, its target is wanted as well. One of
            another model or function is refused, where logits or value differ by more than rounding can make them.
        model, input_ids, tokenizer: as in `attribute`.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend.
        UnsupportedModuleError: as `attribute`.
    """
    if result is not None:
        if not isinstance(result, Attribution):
            raise TypeError(f"result must be what lrp_fast.attribute returned, not {type(result).__name__}")
        of_function = result.explained.kind == "function"
        if of_function and not callable(target):
            raise ValueError("result is of a function of the logits, which it does not hold: give it as target as well")
        if (target is not None and not of_function) or contrast is not None or position != -1 or answer is not None:
            raise ValueError(
                "result says what is asked: leave target, contrast, position and answer out, or the result"
            )
        if of_function or result.explained.of == "masked token":  # the prompt need not hold the mask token
            position = [term.position for term in result.explained.terms]
    asked = question.read(model, input_ids, target, contrast, position, "gradient", tokenizer, answer)
    if asked.several:
        raise TypeError("ablate asks one question: call it once for each target and contrast")
    question.refuse_images(asked, "ablate")
    ids, positions = asked.ids, asked.positions
    if result is not None:
        ids, positions = of_result(asked, result)
    layers = decoder_layers(model)
    cut = _read(what, model, layers, asked, len(ids), result)
    other = _other(replacement, cut, ids, model, asked)
    given: list[Tensor] = []  # to layer 0 by the whole model, then by the cut one
    has_one = result is not None and other is None and replacement == "zero"
    seeing = {}
    if has_one and [*cut.entries] == [Place("tokens")]:
        seeing = {Place("nodes"): lambda x: given.append(x.clone()) or x}
    whole = _logits(model, ids, positions, seeing, {})
    with torch.inference_mode(False), torch.enable_grad():  # a function is asked for its gradient
        logits = whole.clone().requires_grad_()
        scalar, explained = targets.explain(asked.requests[0], logits, positions, asked.choices)
    before, function = scalar.item(), asked.requests[0].function
    if result is not None:
        before, now = again(result.explained, function, whole, whole, asked.choices)
        check_same(model, scalar, logits, now, result)
        explained = replace(now, note=result.explained.note)
    changes = _changes(replacement, cut, other, model, positions)
    after = _logits(model, ids, positions, changes | seeing, cut.edges)
    value, told = again(explained, function, whole, after, asked.choices)
    if seeing:
        has_one = has_one and _are_nodes(cut, given[0], given[len(given) // 2])  # a shared module sees several
    predicted = _predicted(cut, result) if has_one else None
    return Ablation(value, before, predicted, explained, told)


def check(
    model, input_ids, what, replacement="zero", target=None, contrast=None, position=-1, tokenizer=None, answer=None
) -> None:
    """Raise what `ablate` would of the same arguments, without a result; nothing is run."""
    asked = question.read(model, input_ids, target, contrast, position, "gradient", tokenizer, answer)
    question.refuse_images(asked, "ablate")
    cut = _read(what, model, decoder_layers(model), asked, len(asked.ids), None)
    _other(replacement, cut, asked.ids, model, asked)


def _read(what, model, layers: list, asked: Question, length: int, result: Attribution | None) -> _Cut:
    if not isinstance(what, Mapping) or not what:
        raise TypeError(f"what must be a dict that says what is cut, of {', '.join(map(repr, _KINDS))}, not {what!r}")
    entries: dict[Place, set[int]] = {}
    edges: dict[int, list[Pair]] = {}
    heads = [size.heads for size in layer_sizes(model)] if {"edges", "heads"} & what.keys() else []
    causal = "edges" not in what or reads_causally(model)
    for kind, given in what.items():
        if kind not in _KINDS:
            raise ValueError(f"what names {kind!r}: it may name {', '.join(map(repr, _KINDS))}")
        if kind == "sources":
            found = entries.setdefault(Place("tokens"), set())
            found.update(_of_sources(given, asked, length, result))
            continue
        for one in _listed(kind, given):
            if kind == "tokens":
                entries.setdefault(Place("tokens"), set()).add(_within(one, length, kind, "position", True))
                continue
            many = len(layers) + (kind == "nodes")
            layer = _within(one[0], many, kind, "layer")
            if layers.count(layers[min(layer, len(layers) - 1)]) > 1:
                raise ValueError(f"the module of layer {layer} is that of another layer too: what is cut there is both")
            if kind == "edges":
                edges.setdefault(layer, []).append(_pair(one, layers, length, heads, causal))
                continue
            if kind == "nodes":
                size, negative = length, True
            elif kind == "heads":
                check_heads(layers, layer)
                size, negative = heads[layer], False
            else:
                size, negative = neurons(layers, layer), False
            index = _within(one[1], size, kind, "position" if negative else kind[:-1], negative)
            entries.setdefault(Place(kind, layer), set()).add(index)
    if Place("tokens") in entries and any(getattr(layer, "hidden_size_per_layer_input", 0) for layer in layers):
        raise ValueError(
            f"{type(model).__name__} looks tokens up a second time, for every layer (per-layer embeddings), which "
            "would stay: name nodes of layer 0"
        )
    return _Cut({place: sorted(found) for place, found in entries.items()}, edges)


def _listed(kind: str, given) -> list:
    """Whole numbers, or tuples of them."""
    message = f"{kind!r} must be a list of {_KINDS[kind]}, not {given!r}"
    lengths = {"tokens": (), "edges": (3, 4)}.get(kind, (2,))
    try:
        if isinstance(given, str | Mapping):
            raise TypeError
        listed = [tuple(one) if lengths else one for one in given]
        if prompt.holds_truth(listed):  # a mask
            raise TypeError
        found = [tuple(map(operator.index, one)) if lengths else operator.index(one) for one in listed]
    except (TypeError, RuntimeError) as error:  # the latter of tensors without numbers
        raise TypeError(message) from error
    if lengths and any(len(one) not in lengths for one in found):
        raise TypeError(message)
    if not found:
        raise ValueError(f"{kind!r} is an empty list: leave it out, or name {_KINDS[kind]}")
    return found


def _within(number: int, size: int, kind: str, name: str, negative: bool = False) -> int:
    if not (-size if negative else 0) <= number < size:
        raise ValueError(f"{kind!r} names {name} {number}, and there are {size}")
    return number % size


def _pair(one: tuple[int, ...], layers: list, length: int, heads: list[int], causal: bool) -> Pair:
    layer = one[0]
    check_pairs(layers, layer)
    source, target = (_within(number, length, "edges", "position", True) for number in one[1:3])
    if causal and source > target:
        raise ValueError(f"edge {one} would come from the future: write (layer, source, target), source up to target")
    if len(one) == 3:
        return Pair(source, target)
    check_heads(layers, layer)
    return Pair(source, target, _within(one[3], heads[layer], "edges", "head"))


def _of_sources(given, asked: Question, length: int, result: Attribution | None) -> list[int]:
    if isinstance(given, Mapping):
        tokens = asked.tokens if result is None else result.tokens
        groups = divide(given, asked.prompt, tokens, asked.tokenizer, length)
        return (groups.groups < len(given)).nonzero().flatten().tolist()
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"'sources' must be a list of {_KINDS['sources']}, not {given!r}")
    if result is None or result.sources is None:
        raise ValueError("'sources' names some, and no result with sources is given: give a dict of spans")
    found = [position for name in given for position in result.sources.positions(name)]
    if not found:
        raise ValueError(f"'sources' is an empty list: leave it out, or name {_KINDS['sources']}")
    return found


def _other(replacement, cut: _Cut, ids: Tensor, model, asked: Question) -> Tensor | None:
    """The ids of another prompt; None of "zero" and "mean"."""
    text = replacement.text if isinstance(replacement, prompt.Prompt) else replacement
    if isinstance(replacement, str) and replacement in ("zero", "mean"):
        found = None
    elif replacement is None:
        raise TypeError('replacement must be "zero", "mean" or another prompt, not None: leave it out for "zero"')
    elif isinstance(text, str) and (near := _NEAR.get(text.lower())):
        raise ValueError(f"replacement {text!r} would be a prompt: write {near!r}, or that prompt's token ids")
    else:
        try:
            given = prompt.read(replacement, asked.tokenizer)
            place = 0 if asked.choices.what == "masked token" else -1  # any: it need not hold the mask token
            other = question.read_on(model, given, None, None, place, asked.rules, asked.tokenizer)
            question.refuse_images(other, "ablate")
            found = other.ids
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"replacement: {str(error).replace('input_ids', 'it', 1)}") from error
        if len(found) != len(ids):
            behind = len(ids) - len(asked.prompt.ids)
            raise ValueError(
                f"replacement is a prompt of {len(found)} tokens, and this one has {len(ids)}: give one of as many"
                + f", the {behind} included that are read behind the prompt, as of an answer" * (behind > 0)
            )
    if not cut.entries and not (found is None and replacement == "zero"):
        raise ValueError("replacement is given, and edges alone are cut, which are hidden: leave it out")
    return found


def _logits(model, ids: Tensor, positions: list[int], changes: dict, edges: dict) -> Tensor:
    """(P, V), of a model with changes."""
    ids = ids[None].to(device_of(model.get_input_embeddings()))
    layers = decoder_layers(model)
    with ExitStack() as leaving:
        for block in (torch.inference_mode(False), torch.no_grad(), passing(model, Rules("gradient"))):
            leaving.enter_context(block)
        leaving.enter_context(keeping_rotations(model))
        leaving.enter_context(changing(model, layers, changes, edges))
        return logits_at(model, ids, positions).to(torch.promote_types(model.dtype, torch.float32))


def _changes(replacement, cut: _Cut, other: Tensor | None, model, positions: list[int]) -> dict[Place, Callable]:
    if other is None:
        do = _zero if replacement == "zero" else _mean
        return {place: _entries(_AXES[place.kind], entries, do(place.kind)) for place, entries in cut.entries.items()}
    found: dict[Place, Tensor] = {}

    def keeping(place: Place, entries: list[int]) -> Callable[[Tensor], Tensor]:
        def keep(x: Tensor) -> Tensor:
            found[place] = x.index_select(_AXES[place.kind], torch.tensor(entries, device=x.device))
            return x

        return keep

    _logits(model, other, positions, {place: keeping(place, entries) for place, entries in cut.entries.items()}, {})
    return {
        place: _entries(_AXES[place.kind], entries, lambda _, chosen, of=found[place]: of)
        for place, entries in cut.entries.items()
    }


def _entries(axis: int, entries: list[int], do: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The change that replaces these entries of a tensor along an axis by ``do(tensor, entries of it)``."""

    def change(x: Tensor) -> Tensor:
        index = torch.tensor(entries, device=x.device)
        chosen = x.index_select(axis, index)
        return x.index_copy(axis, index, do(x, chosen).expand_as(chosen).to(x.dtype))

    return change


def _zero(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, chosen: torch.zeros_like(chosen)


def _mean(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Over positions: of all of them where positions are chosen, of the chosen heads and neurons their own."""
    if kind in ("tokens", "nodes"):
        return lambda x, chosen: x.mean(1, keepdim=True)
    return lambda x, chosen: chosen.mean(-2, keepdim=True)


def _are_nodes(cut: _Cut, whole: Tensor, now: Tensor) -> bool:
    """Whether cutting these tokens did to what layer 0 is given what cutting its nodes does, which relevance is of.

    Read off the cut itself, as equal bits: a scaled embedding is zero with it, what was added to it stays, and what
    mixes tokens on the way changes others too.
    """
    (entries,) = cut.entries.values()
    return torch.equal(whole.index_fill(1, torch.tensor(entries, device=whole.device), 0.0), now)


def _predicted(cut: _Cut, result: Attribution) -> float | None:
    """See `Ablation`."""
    if cut.edges:
        (layer, pairs), *others = cut.edges.items()
        return None if cut.entries or others else _of_edges(layer, pairs, result.graph)
    (place, entries), *others = cut.entries.items()
    if others or place.kind in ("heads", "neurons"):
        return None
    return -float(result.layers[place.layer, entries].double().sum())


def _of_edges(layer: int, pairs: list[Pair], graph) -> float | None:
    if graph is None or any(pair.head is not None for pair in pairs):
        return None
    edges, total = graph.edges(layer), 0.0
    for source, target, _ in set(pairs):
        row = (edges.rows == target).nonzero().flatten()
        if not len(row):
            return None
        stored = slice(int(edges.indptr[row]), int(edges.indptr[row + 1]))
        column = (edges.columns[stored] == source).nonzero().flatten()
        if not len(column):
            return None
        total += float(edges.weights[stored][column])
    return -total
