"""The best paths from the inputs to what is explained."""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np

from .. import _native
from . import nodes
from .native import arrays


class Path(NamedTuple):
    """One path from layer 0 up.

    Attributes:
        share: the product of its edges' shares, times the target's own where there are several targets.
        positions: its position in layer 0, 1, ... up to the target's layer.
    """

    share: float
    positions: tuple[int, ...]


def best(graph, k: int, target) -> list[Path]:
    try:
        k = operator.index(k)
    except TypeError as error:
        raise TypeError(f"k must be a whole number, not {k!r}") from error
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    found = nodes.targets(graph, target)
    layers, positions = np.ascontiguousarray(found.T)
    shares, ends, traced = _native.best_paths(arrays(graph), layers, positions, nodes.shares(graph, found), k)
    return [
        Path(share, tuple(positions[: layers[end] + 1]))
        for share, end, positions in zip(shares.tolist(), ends.tolist(), traced.tolist(), strict=True)
    ]
