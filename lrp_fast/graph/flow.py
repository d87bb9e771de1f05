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
    return _reach(graph, nodes.mask(graph, nodes.targets(graph, target)), forward=False)


def descendants(graph, source) -> torch.Tensor:
    found = nodes.inputs(graph) if source is None else nodes.mask(graph, nodes.read(graph, source, "source"))
    return _reach(graph, found, forward=True)


def subgraph(graph, mask):
    flags = nodes.read_mask(graph, mask)
    return keep(graph, mask=flags, step={"subgraph": {"nodes": int(flags.sum())}})


def trim(graph, target):
    found = nodes.targets(graph, target)
    return keep_paths(graph, nodes.mask(graph, found), {"trim": {"target": nodes.named(target, found)}})


def keep_paths(graph, ends: np.ndarray, step: dict):
    """The graph with only the edges on a path from layer 0 to a node of the mask ``ends``."""
    on_path = _reach(graph, ends, forward=False) & _reach(graph, nodes.inputs(graph), forward=True)
    return keep(graph, mask=on_path.numpy(), step=step)


def keep(graph, thresholds=0.0, above=True, factors=None, mask=None, step=None):
    """The graph with only the edges whose |weight|, times the target's factor if there are factors, is above (or, not
    ``above``, at least) the threshold of its transition, and whose nodes are both in the mask. The manifest lists the
    ``step``, if there is one, under "pruned"."""
    limits = np.full(graph.num_layers, thresholds, np.float64)
    kept = _native.keep_edges(arrays(graph), graph.dropped_self.numpy(), limits, above, factors, mask)
    names = ("indptr", "columns", "weights", "self_edges", "dropped_mass", "dropped_self")
    before = graph.manifest
    manifest = before if step is None else before | {"pruned": [*before.get("pruned", []), step]}
    return replace(graph, manifest=manifest, **dict(zip(names, map(torch.from_numpy, kept), strict=True)))


def _reach(graph, mask: np.ndarray, forward: bool) -> torch.Tensor:
    return torch.from_numpy(_native.reach(arrays(graph), mask, forward))
