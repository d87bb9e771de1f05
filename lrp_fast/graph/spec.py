"""What graph to build, and the edges of one transition from one backward pass through its layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import ops
from .container import Edges


@dataclass(frozen=True)
class GraphSpec:
    """Which edges the graph of `lrp_fast.attribute` keeps. Give one of ``topk`` and ``mass``.

    Self edges (residual, MLP, query path) are always kept, whole; what is said of edges is about those that the
    attention makes, the ones from a position to itself included.

    Args:
        topk: as many edges into each target, those of largest |weight|; of equal ones those with the lower source.
        mass: in each transition the smallest set of largest |weight| that holds this share of the sum of |weight|, ties
            kept (arXiv 2604.17761). There an edge from a position to itself counts with its self edge, as in
            `Graph.prune`. In (0, 1].
        node_threshold: only edges into targets with |relevance| of at least this share of the explained value's
            magnitude are computed; the others are not listed.
        absolute: ``node_threshold`` is in units of relevance (the paper takes 0.01).
        layers: the transitions whose edges are computed, None for all; the others have self edges alone.

    Raises:
        ValueError, TypeError: for a number out of range.
    """

    topk: int | None = None
    mass: float | None = None
    node_threshold: float = 0.0
    absolute: bool = False
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if (self.topk is None) == (self.mass is None):
            raise ValueError("a GraphSpec takes one of topk= and mass=, such as GraphSpec(topk=16)")
        if self.topk is not None:
            object.__setattr__(self, "topk", whole(self.topk, "topk must be a whole number"))
            if self.topk < 1:
                raise ValueError(f"topk must be at least 1, not {self.topk}")
        if self.mass is not None and not (_is_number(self.mass) and 0 < self.mass <= 1):
            raise ValueError(f"mass must be a share above 0 and at most 1, not {self.mass!r}")
        if not (_is_number(self.node_threshold) and 0 <= self.node_threshold < math.inf):
            raise ValueError(f"node_threshold must be a finite number, 0 or above, not {self.node_threshold!r}")
        if not isinstance(self.absolute, bool):
            raise TypeError(f"absolute must be True or False, not {self.absolute!r}")
        if self.layers is not None:
            try:
                layers = tuple(whole(one, "layers") for one in self.layers)
            except TypeError as error:
                raise TypeError(f"layers must be a list of whole numbers, not {self.layers!r}") from error
            object.__setattr__(self, "layers", layers)

    def check(self, num_layers: int) -> None:
        """ValueError for a layer that the model lacks."""
        for layer in self.layers or ():
            if not 0 <= layer < num_layers:
                raise ValueError(f"there is no transition {layer}: this model's are numbered 0 to {num_layers - 1}")


def transition(spec: GraphSpec, passed, value: float) -> tuple[Edges, torch.Tensor, torch.Tensor]:
    """Edges, (R, 2) dropped mass and (N,) self edges of one layer, from its `stream.Passed`.

    ``value`` is what was explained. A query that no relevance reached has no edges and is not listed.
    """
    dtype, own = passed.relevance_in.dtype, passed.relevance_in
    if passed.mixings:  # else every token goes on alone
        own = own - (ops.layer_crossing(passed.mixings) / passed.raised).to(dtype)
    smallest = spec.node_threshold * (1.0 if spec.absolute else abs(value))
    active = passed.relevance_out.abs() >= smallest
    if not passed.mixings or (spec.layers is not None and passed.layer not in spec.layers):
        active = torch.zeros_like(active)
    else:
        active &= ops.reached_rows(passed.mixings)
    rows = active.nonzero().flatten()
    if len(rows) == 0:
        none = torch.zeros(0, dtype=torch.int32)
        edges = Edges(none, torch.zeros(1, dtype=torch.int64), none, torch.zeros(0, dtype=dtype))
        return edges, torch.zeros(0, 2, dtype=dtype), own.cpu()
    choice = {"topk": spec.topk} if spec.mass is None else {"mass": spec.mass, "own": own * passed.raised}
    found = ops.layer_edges(passed.mixings, rows, **choice)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), found.counts.cumsum(0)])
    raised = torch.as_tensor(passed.raised).cpu()
    edges = Edges(rows.int().cpu(), indptr, found.columns, (found.weights / raised).to(dtype))
    return edges, (found.dropped / raised).to(dtype), own.cpu()


def whole(value, demand: str) -> int:
    """``value`` as an int; TypeError with the ``demand`` that it does not meet, for truth values too."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError("a truth value")
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{demand}, not {value!r}") from error


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
