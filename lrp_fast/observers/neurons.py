"""Relevance of MLP neurons: the inner features, at the input of the linear map that makes what the MLP puts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..hf import why_no_neurons
from ..watch import Seen
from .room import Observer, Pass, chosen


class NeuronRelevance(NamedTuple):
    """M neurons, a layer's together, the lowest layer first; within it by |relevance|, the strongest first. On the CPU.

    Attributes:
        layer, neuron: (M,) int64 each.
        relevance: (M,) the sum over positions of a * g_a, a the neuron's activation (behind the gate, if there is one)
            and g_a its relevance gradient; float32, float64 of a float64 model.
    """

    layer: Tensor
    neuron: Tensor
    relevance: Tensor


@dataclass(frozen=True)
class Neurons(Observer):
    """Of every decoder layer, or of ``layers`` alone, the ``k`` neurons of largest |relevance|, or all (None): a
    `NeuronRelevance`.

    Layers with experts, whose neurons are not the same for all tokens, are refused: name ``layers`` without.
    Where memory allows a layer to keep autograd's graph, it keeps its (N, F) activations with it for this.
    """

    k: int | None = 16
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.k is None:
            return
        if isinstance(self.k, bool) or not isinstance(self.k, int):
            raise TypeError(f"k must be a whole number, or None for all neurons, not {self.k!r}")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")

    def needs(self, of: Pass) -> list[frozenset[str]]:
        mine = chosen(self.layers, of)
        for one in mine:
            if (why := why_no_neurons(of.layers[one])) is not None:
                raise ValueError(f"layer {one}: {why}: name other layers=, or leave the observer Neurons out")
        return [frozenset({"neurons"} if one in mine else ()) for one in range(len(of.layers))]

    def __call__(self, seen: Seen) -> tuple[Tensor, Tensor] | None:
        if seen.neurons is None:
            return None
        order = seen.neurons.abs().argsort(descending=True, stable=True)[: self.k]
        return order, seen.neurons[order]

    def table(self, kept: list, of: Pass, target: int) -> NeuronRelevance:
        mine = chosen(self.layers, of)
        neurons, relevance = zip(*(kept[one] for one in mine), strict=True)
        layers = [torch.full_like(of_layer, one) for one, of_layer in zip(mine, neurons, strict=True)]
        return NeuronRelevance(torch.cat(layers), torch.cat(neurons), torch.cat(relevance))
