"""A patched model run with parts of it changed: embeddings, hidden states, heads, neurons, and which key a query reads.

As everything here, what changes is laid over instances, for one thread and the length of a ``with`` block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops, reference
from ..ops.attention_chosen import Chosen
from . import weights
from .altup import as_read, tokens_first
from .families import last_linear, mlps
from .overlay import forward_name, forward_of, laid
from .within import attentions, beside_attention, why_no_heads, why_no_neurons

_SCORES = 1 << 24  # of some queries at a time
Change = Callable[[Tensor], Tensor]


class Place(NamedTuple):
    """Where tensors may be changed.

    "tokens": what the input embeddings put out, (1, N, D). "nodes": the hidden states that decoder layer ``layer`` is
    given, or behind the last layer what that puts out, (1, N, ...). "heads": what the heads of its attention read,
    (1, H, N, D). "neurons": what its MLP's last linear map is given, (1, N, M).
    """

    kind: str
    layer: int = 0


class Pair(NamedTuple):
    """A key that a query does not get to read, by one head or by all."""

    source: int
    target: int
    head: int | None = None


@contextmanager
def changing(
    model: nn.Module,
    layers: list[nn.Module],
    changes: Mapping[Place, Change],
    hidden: Mapping[int, list[Pair]],
) -> Iterator[None]:
    """While a patched model runs a prompt without autograd, each tensor at one of the places is what its change makes
    of it, and attentions of the layers numbered in ``hidden`` do without these pairs.

    Raises:
        ValueError: one sentence, for what a layer does not have.
    """
    overlays = []
    at_layers: dict[int, dict[str, Change]] = {}
    for place, change in changes.items():
        if place.kind == "tokens":
            embeddings = model.get_input_embeddings()
            overlays.append((embeddings, forward_name(embeddings), _behind(forward_of(embeddings), change)))
        elif place.kind == "neurons":
            linear = last_map(layers, place.layer)
            overlays.append((linear, forward_name(linear), _before(forward_of(linear), change)))
        elif place.kind == "nodes":
            end = place.layer == len(layers)
            at_layers.setdefault(place.layer - end, {})["output" if end else "input"] = change
    for number, ends in at_layers.items():
        layer = layers[number]
        own = forward_of(layer)
        own = _before(own, _of_nodes(layer, ends["input"])) if "input" in ends else own
        own = _behind(own, _of_nodes(layer, ends["output"])) if "output" in ends else own
        overlays.append((layer, forward_name(layer), own))
    of_heads = {place.layer: change for place, change in changes.items() if place.kind == "heads"}
    for number in of_heads.keys() | hidden.keys():
        attend = _attend(number, of_heads.get(number), hidden.get(number, []))
        overlays += [(one, "lrp_fast_attend", attend) for one in attentions(layers[number])]
    with laid(overlays):
        yield


def check_pairs(layers: list[nn.Module], number: int) -> None:
    """Raise ``ValueError`` unless tokens meet in a layer's attentions alone: no other way of theirs can be cut."""
    if (other := beside_attention(layers[number])) is not None:
        raise ValueError(
            f"tokens meet in the {type(other).__name__} of layer {number}, where no pair of them can be hidden: "
            "edges are cut in layers whose tokens meet in softmax attention alone"
        )
    if not attentions(layers[number]):
        raise ValueError(f"layer {number} has no attention that lrp_fast knows, and so no edges that could be cut")


def check_heads(layers: list[nn.Module], number: int) -> None:
    """Raise ``ValueError`` unless a layer has one attention, whose heads are the same for all tokens."""
    if (why := why_no_heads(layers[number])) is not None:
        raise ValueError(f"layer {number}: {why}: name nodes there")


def last_map(layers: list[nn.Module], number: int) -> nn.Module:
    """The linear map that the neurons of a layer are the input of.

    Raises:
        ValueError: unless the layer has one MLP, and that no mixture of experts.
    """
    if (why := why_no_neurons(layers[number])) is not None:
        raise ValueError(f"layer {number}: {why}: name nodes or heads there")
    return last_linear(mlps(layers[number])[0])


def neurons(layers: list[nn.Module], number: int) -> int:
    """How many a layer has; raises as `last_map`."""
    return weights.shape(last_map(layers, number))[1]


def _of_nodes(layer: nn.Module, change: Change) -> Change:
    return lambda hidden: as_read(layer, change(tokens_first(layer, hidden)))


def _before(own: Callable, change: Change) -> Callable:
    def forward(*args, **named):
        if args:
            return own(_changed(change, args[0]), *args[1:], **named)
        (name,) = (name for name in ("hidden_states", "input", "x") if name in named)
        return own(**{**named, name: _changed(change, named[name])})

    return forward


def _behind(own: Callable, change: Change) -> Callable:
    def forward(*args, **named):
        out = own(*args, **named)
        if isinstance(out, tuple | list):
            return (_changed(change, out[0]), *out[1:])
        return _changed(change, out)

    return forward


def _changed(change: Change, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # nothing of it is the model's own code, which may be under `by_rule`
        return change(x)


def _attend(number: int, change: Change | None, pairs: list[Pair]) -> Callable:
    def attend(query, key, value, **given):
        out = ops.attention(query, key, value, **given)
        if pairs:
            out = _changed(lambda out: _without(out, query, key, value, pairs, number, **given), out)
        return out if change is None else _changed(change, out)

    return attend


def _without(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, pairs: list[Pair], number: int, **given
) -> Tensor:
    """The attention's output (1, H, N, D), of these pairs' queries read anew, by its definition: their scores of the
    pairs are -inf."""
    wide = torch.promote_types(out.dtype, torch.float32)
    heads, keys = query.shape[1], key.shape[2]
    told = {"scale": given["scale"], "softcap": given.get("softcap")}
    sinks = given.get("sinks")
    if sinks is not None:
        told["sinks"] = sinks.detach().to(wide)
    out, of_query = out.clone(), {}
    for pair in pairs:
        of_query.setdefault(pair.target, []).append(pair)
    queries, each = sorted(of_query), max(1, _SCORES // (heads * keys))
    for start in range(0, len(queries), each):
        rows = torch.tensor(queries[start : start + each], device=out.device)
        reach = seen_keys(rows, query, key, **given).expand(1, heads, -1, -1)
        seen = reach.clone()
        for row, target in enumerate(rows.tolist()):
            for pair in of_query[target]:
                of = slice(None) if pair.head is None else slice(pair.head, pair.head + 1)
                if not reach[0, of, row, pair.source].any():
                    raise ValueError(
                        f"edge ({number}, {pair.source}, {target}) cuts nothing: in layer {number}, position {target} "
                        f"does not read position {pair.source}"
                    )
                seen[0, of, row, pair.source] = False
            if sinks is None and not seen[0, :, row].any(-1).all():
                raise ValueError(f"position {target} of layer {number} would have no key left to read: spare one edge")
        read = (one.to(wide) for one in (query[:, :, rows], key, value))
        out[:, :, rows] = reference.attention(*read, seen, **told).to(out.dtype)
    return out


def seen_keys(rows: Tensor, query: Tensor, key: Tensor, *, causal, window, chunk, chosen=None, block=1, **_) -> Tensor:
    """(1, 1 or H, R, N) bool: which key each of these queries reads, of one prompt without padding."""
    i, j = rows[:, None], torch.arange(key.shape[2], device=rows.device)
    seen = j <= i if causal else torch.ones_like(j <= i)
    if window is not None:
        seen = seen & ((j - i).abs() < window)
    if chunk is not None:
        seen = seen & (j // chunk == i // chunk)
    seen = seen[None, None]
    if chosen is None:
        return seen
    index = chosen() if callable(chosen) else chosen
    hidden = Chosen.read(index, block, query, key).hides(rows, slice(0, key.shape[2]))
    of_each = query.shape[1] // hidden.shape[1] if hidden.shape[1] > 1 else 1
    return seen & ~hidden.repeat_interleave(of_each, 1)
