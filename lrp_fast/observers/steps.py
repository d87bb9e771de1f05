"""A run as a trajectory: its steps' mean hidden states and relevance, layer by layer, and where two runs part.

These are the quantities of the studies of hidden trajectories: Reasoning as Trajectories, Distributional Semantics
Tracing, REMA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..watch import Seen
from .room import Observer, Pass, places


class Trajectory(NamedTuple):
    """S spans of positions at each layer, on the CPU, in float32, in float64 of a float64 model.

    Attributes:
        hidden: (L + 1, S, D) the mean hidden state of a span's positions; of several residual streams, D is all of
            their features.
        relevance: (L + 1, S) the sum of the nodes' relevance.
    """

    hidden: Tensor
    relevance: Tensor


@dataclass(frozen=True)
class Steps(Observer):
    """Of each of the spans, as ``[range(0, 12), range(12, 30)]``, any sequences of positions: a `Trajectory`."""

    spans: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if isinstance(self.spans, str) or not hasattr(self.spans, "__iter__"):
            raise TypeError(f"spans must be a sequence of spans, as [range(0, 12)], not {self.spans!r}")
        if not len(self.spans):
            raise ValueError("spans is empty: name at least one span of positions")

    def needs(self, of: Pass) -> list[frozenset[str]]:
        for span in self.spans:
            found = places(span, "spans", of.length)
            if len(set(found)) < len(found):
                raise ValueError(f"spans holds {span!r}, with a position twice: name each once")
        return super().needs(of)

    def __call__(self, seen: Seen) -> Trajectory:
        spans = [places(span, "spans", len(seen.hidden)) for span in self.spans]
        wide = seen.gradient.dtype
        hidden = [seen.hidden[span].flatten(1).to(wide).mean(0) for span in spans]
        return Trajectory(torch.stack(hidden).cpu(), torch.stack([seen.relevance[span].sum() for span in spans]).cpu())

    def table(self, kept: list, of: Pass, target: int) -> Trajectory:
        return Trajectory(*map(torch.stack, zip(*kept, strict=True)))


def departures(one: Trajectory, other: Trajectory, bound: float) -> list[int | None]:
    """For each span, the lowest layer at which the two trajectories are further apart than ``bound``; None: at none.

    The distance of mean hidden states a and b is 2 |a - b| / (|a| + |b|), in Euclidean norms: 0 where they are equal
    (both zero, too), 2 at most.

    Args:
        one, other: of two runs through one model, with as many spans.
        bound: from 0 up to, but not including, 2.

    Raises:
        ValueError: for trajectories of different shapes, and for another bound.
    """
    if one.hidden.shape != other.hidden.shape:
        shapes = f"{tuple(one.hidden.shape)} and {tuple(other.hidden.shape)}"
        raise ValueError(f"trajectories of {shapes} have no distance: give two of as many layers, spans and features")
    if not 0 <= bound < 2:
        raise ValueError(f"bound must be from 0 up to, but not including, 2, which no distance exceeds, not {bound}")
    a, b = one.hidden.double(), other.hidden.double()
    norms = torch.linalg.vector_norm(a, dim=-1) + torch.linalg.vector_norm(b, dim=-1)
    apart = 2 * torch.linalg.vector_norm(a - b, dim=-1) > bound * norms
    return [int(span.int().argmax()) if span.any() else None for span in apart.T]
