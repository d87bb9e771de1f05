"""Relevance that passes each attention head, and by what it is passed on: why a head attends, and what it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..hf import layer_sizes, why_no_parts
from ..watch import Seen
from .room import Observer, Pass, chosen


class HeadRelevance(NamedTuple):
    """Relevance at the heads of L' decoder layers, x * g summed over positions and a head's features, on the CPU, in
    float32, in float64 of a float64 model.

    Under attnlrp and without stabilisers a head's values pass on half of what arrives at it (``output``), under cp all;
    its queries and keys, by the softmax's Jacobian, an amount of their own: what made it attend as it does (cp: 0).
    What crosses positions in a layer is the sum of ``key`` and ``value``, less what biases add to these.

    Attributes:
        layer: (L',) int64, their numbers.
        output: (L', H) sum over positions of <u, o>, u the relevance gradient at the head's output o.
        query: (L', H) of <q, g_q>, rotated as the attention reads them.
        key, value: (L', H_kv) of <k, g_k> and <v, g_v>, of H_kv key/value heads where they are grouped.
    """

    layer: Tensor
    output: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Heads(Observer):
    """Of every decoder layer, or of ``layers`` alone: a `HeadRelevance`.

    Layers with scans instead of attentions, with several attentions or with ALiBi are refused, and so are layers of
    different numbers of heads together: name ``layers`` of one kind.
    """

    layers: Sequence[int] | None = None

    def needs(self, of: Pass) -> list[frozenset[str]]:
        mine = chosen(self.layers, of)
        for one in mine:
            if (why := why_no_parts(of.layers[one])) is not None:
                raise ValueError(f"layer {one}: {why}: name other layers=, or leave the observer Heads out")
        sizes = layer_sizes(of.model)
        kinds = {(sizes[one].heads, sizes[one].heads * sizes[one].key // sizes[one].query): one for one in mine}
        if len(kinds) > 1:
            first, second, *_ = sorted(kinds.values())
            raise ValueError(f"layers {first} and {second} have different numbers of heads: name layers= of one kind")
        return [frozenset({"heads"} if one in mine else ()) for one in range(len(of.layers))]

    def __call__(self, seen: Seen) -> object:
        return seen.heads

    def table(self, kept: list, of: Pass, target: int) -> HeadRelevance:
        mine = chosen(self.layers, of)
        columns = zip(*(kept[one] for one in mine), strict=True)
        return HeadRelevance(torch.tensor(mine, device="cpu"), *map(torch.stack, columns))
