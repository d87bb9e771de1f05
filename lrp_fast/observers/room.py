"""Where observers and a pass meet: what they need is read before it, what they return is kept by target and layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..graph.spec import whole
from ..hf import decoder_layers
from ..question import Question
from ..rules import Rules
from ..targets import Request
from ..watch import Seen, Watch


class Pass(NamedTuple):
    """What is known of a pass before and after it, for observers of our own."""

    model: nn.Module
    layers: list[nn.Module]
    length: int
    positions: list[int]  # that are explained
    rules: Rules
    linear: bool  # whether logits are summed up with fixed weights: not so for log-probabilities and functions
    weights: list[Tensor]  # (P, V) a target: how much of each logit there is in what is explained; after the pass


class Observer:
    """What an observer may have besides being called. Any callable is one without."""

    weighs_logits = False  # whether its table wants `Pass.weights`

    def needs(self, of: Pass) -> list[frozenset[str]]:
        """For each decoder layer, what is to be summed up within it: "heads", "neurons".

        Raises:
            ValueError, TypeError: for what the model or the prompt has not; nothing has run yet.
        """
        return [frozenset()] * len(of.layers)

    def table(self, kept: list, of: Pass, target: int) -> object:
        """What becomes of the list of what it returned, entry l of layer l."""
        return kept


class Room:
    """The observers of one call of `lrp_fast.attribute`."""

    def __init__(self, observe: Sequence, model: nn.Module, asked: Question) -> None:
        if callable(observe) or isinstance(observe, str) or not hasattr(observe, "__iter__"):
            raise TypeError(f"observe must be a list of observers, not {observe!r}: put one alone in a list")
        self._observers = list(observe)
        for one in self._observers:
            if isinstance(one, type) or not callable(one):
                mend = f"make one, {one.__name__}()" if isinstance(one, type) else "give objects that can be called"
                raise TypeError(f"observe holds {one!r}, which is no observer: {mend}")
        self._asked, self._kept = asked, {}
        if not self._observers:
            return
        layers = decoder_layers(model)
        linear = all(map(_is_linear, asked.requests))
        self._pass = Pass(model, layers, len(asked.ids), asked.positions, asked.rules, linear, [])
        needs = [one.needs(self._pass) for one in self._observers if isinstance(one, Observer)]
        self._wanted = [frozenset().union(*(one[layer] for one in needs)) for layer in range(len(layers))]

    @property
    def watch(self) -> Watch | None:
        """What `lrp_fast.stream.propagate` is given."""
        return Watch(self._wanted, self._asked.positions, self._tell) if self._observers else None

    def objective(self, found: list) -> Callable[[Tensor], list[Tensor]]:
        """The question's, whose derivatives are noted as weights of the logits."""
        own = self._asked.objective(found)
        if not any(getattr(one, "weighs_logits", False) for one in self._observers):
            return own

        def scalars(logits: Tensor) -> list[Tensor]:
            explained = own(logits)
            leaf = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
            for one in self._asked.objective([])(leaf):
                self._pass.weights.append(torch.autograd.grad(one, leaf)[0])
            return explained

        return scalars

    def observed(self, target: int) -> list | None:
        """Parallel to ``observe``; None where it is empty."""
        if not self._observers:
            return None
        return [
            one.table(self._kept[target, i], self._pass, target) if isinstance(one, Observer) else self._kept[target, i]
            for i, one in enumerate(self._observers)
        ]

    def _tell(self, seen: Seen) -> None:
        for i, one in enumerate(self._observers):
            kept = self._kept.setdefault((seen.target, i), [None] * (len(self._pass.layers) + 1))
            kept[seen.layer] = one(seen)


def _is_linear(request: Request) -> bool:
    return request.function is None and not request.logprob and all(map(_is_linear, request.each))


def chosen(layers: Sequence[int] | None, of: Pass) -> list[int]:
    """Decoder layers by number, ascending, each once; None: all."""
    if layers is None:
        return list(range(len(of.layers)))
    found = whole_numbers(layers, "layers")
    for one in found:
        if not 0 <= one < len(of.layers):
            raise ValueError(f"layer {one} is none of the model's decoder layers, 0 to {len(of.layers) - 1}")
    return sorted(set(found))


def places(given: Sequence[int], name: str, length: int) -> list[int]:
    """Positions counted from the prompt's beginning; they come from its end where they are negative."""
    found = whole_numbers(given, name)
    for one in found:
        if not -length <= one < length:
            raise ValueError(f"{name} holds position {one}, outside the prompt's {length} tokens")
    return [one % length for one in found]


def whole_numbers(given: Sequence[int], name: str) -> list[int]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"{name} must be a sequence of whole numbers, not {given!r}")
    found = [whole(one, f"{name} must hold whole numbers") for one in given]
    if not found:
        raise ValueError(f"{name} is empty: name at least one, or leave it out")
    return found
