"""Differences of graphs, and graphs over groups of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .. import _native
from .native import arrays

_COMBINED = ("row_offsets", "rows", "indptr", "columns", "weights", "dropped_mass")


def difference(graph, other):
    if not isinstance(other, type(graph)):
        raise TypeError(f"other must be a Graph, not {type(other).__name__}")
    if graph.nodes.shape != other.nodes.shape:
        raise ValueError(
            f"a difference needs two graphs of the same layers and tokens, not {tuple(graph.nodes.shape)} "
            f"and {tuple(other.nodes.shape)} nodes"
        )
    if graph.tokens is not None and other.tokens is not None and graph.tokens != other.tokens:
        place = next(i for i, (a, b) in enumerate(zip(graph.tokens, other.tokens, strict=True)) if a != b)
        raise ValueError(
            f"a difference needs two graphs of the same tokens, and token {place} is {graph.tokens[place]!r} "
            f"in one, {other.tokens[place]!r} in the other"
        )
    dtype = torch.promote_types(graph.nodes.dtype, other.nodes.dtype)
    graph, other = _as(graph, dtype), _as(other, dtype)
    combined = _native.difference(arrays(graph), arrays(other))
    return replace(
        graph,
        nodes=graph.nodes - other.nodes,
        self_edges=graph.self_edges - other.self_edges,
        dropped_self=graph.dropped_self - other.dropped_self.flip(1),
        tokens=graph.tokens if graph.tokens is not None else other.tokens,
        manifest={"difference": [graph.manifest, other.manifest]},
        causal=graph.causal and other.causal,
        **dict(zip(_COMBINED, map(torch.from_numpy, combined), strict=True)),
    )


def _as(graph, dtype: torch.dtype):
    if graph.nodes.dtype == dtype:
        return graph
    names = ("nodes", "self_edges", "weights", "dropped_mass", "dropped_self")
    return replace(graph, **{name: getattr(graph, name).to(dtype) for name in names})


def group_by(graph, groups, names):
    ids = np.asarray(groups)
    if ids.shape != (graph.num_tokens,) or ids.dtype.kind not in "iu":
        raise ValueError(f"groups must be {graph.num_tokens} whole numbers, one a token, not {ids.dtype} {ids.shape}")
    lowest, highest = int(ids.min()), int(ids.max())
    allowed = graph.num_tokens - 1 if names is None else len(names) - 1
    if lowest < 0 or highest > allowed:
        raise ValueError(f"groups must be numbered 0 to {allowed}, and {lowest if lowest < 0 else highest} is there")
    num_groups = highest + 1 if names is None else len(names)
    combined = _native.group(arrays(graph), ids.astype(np.int32), num_groups)
    return replace(
        graph,
        nodes=_sums(graph.nodes, ids, num_groups),
        self_edges=_sums(graph.self_edges, ids, num_groups),
        tokens=None if names is None else list(names),
        manifest={"group_by": graph.manifest},  # positions in there are those of tokens
        causal=graph.causal and bool((np.diff(ids) >= 0).all()),
        **dict(zip(_COMBINED, map(torch.from_numpy, combined), strict=True)),
    )


def _sums(values: torch.Tensor, ids: np.ndarray, num_groups: int) -> torch.Tensor:
    """(..., N) -> (..., G), added in float64."""
    sums = torch.zeros(*values.shape[:-1], num_groups, dtype=torch.float64)
    return sums.index_add_(-1, torch.from_numpy(ids.astype(np.int64)), values.double()).to(values.dtype)
