"""What flows through a node, what reaches it, and the part of a graph where something does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .. import _native
from . import nodes
from .native import arrays


def influence(graph, target, signed: bool) -> torch.Tensor:
    start = nodes.start(graph, nodes.targets(graph, target), signed)
    signs = graph.nodes.numpy() if signed else None
    found, _ = _native.influence(arrays(graph), start, signs, None, True)
    return torch.from_numpy(found)


def ancestors(graph, target) -> torch.Tensor:
    found = nodes.mask(graph, nodes.targets(graph, target))
    return torch.from_numpy(_native.reach(arrays(graph), found, False))


def descendants(graph, source) -> torch.Tensor:
    if source is None:
        source = [(0, position) for position in range(graph.num_tokens)]
    found = nodes.mask(graph, nodes.read(graph, source, "source"))
    return torch.from_numpy(_native.reach(arrays(graph), found, True))


def subgraph(graph, mask):
    return keep(graph, mask=nodes.read_mask(graph, mask))


def trim(graph, target):
    return subgraph(graph, ancestors(graph, target) & descendants(graph, None))


def keep(graph, thresholds=0.0, above=True, factors=None, mask=None):
    """The graph with only the edges whose |weight|, times the target's factor if there are factors, is above (or, not
    ``above``, at least) the threshold of its transition, and whose nodes are both in the mask."""
    limits = np.full(graph.num_layers, thresholds, np.float64)
    kept = _native.keep_edges(arrays(graph), graph.dropped_self.numpy(), limits, above, factors, mask)
    names = ("indptr", "columns", "weights", "self_edges", "dropped_mass", "dropped_self")
    return replace(graph, **dict(zip(names, map(torch.from_numpy, kept), strict=True)))
