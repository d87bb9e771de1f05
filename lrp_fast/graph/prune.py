"""Pruning: by weight, by mass a transition, by influence. No full sort anywhere: thresholds are found by selection."""

from __future__ import annotations

import math

import numpy as np

from .. import _native
from . import flow, nodes
from .native import arrays

# Influences that are equal but for rounding count as equal: on a chain all are 1, and a threshold among them cuts it.
_TIES = 1 - 1e-12


def prune(graph, threshold, mass, influence, target):
    measures = {"threshold": threshold, "mass": mass, "influence": influence}
    given = [name for name, value in measures.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one of threshold=, mass= and influence=, not {' and '.join(given) or 'none'}")
    if target is not None and influence is None:
        raise ValueError(f"target= goes with influence=, not with {given[0]}=")
    if threshold is not None:
        if not (_is_number(threshold) and 0 <= threshold < math.inf):
            raise ValueError(f"threshold must be a finite number, 0 or above, not {threshold!r}")
        return flow.keep(graph, threshold, step={"threshold": threshold})
    if mass is not None:
        limits = _native.mass_thresholds(arrays(graph), _share(mass, "mass"))
        return flow.keep(graph, limits, above=False, step={"mass": mass})
    if not isinstance(influence, tuple | list) or len(influence) != 2:
        raise ValueError(f"influence must be (node share, edge share), such as (0.8, 0.98), not {influence!r}")
    node_share, edge_share = (_share(one, "influence") for one in influence)
    found = nodes.targets(graph, target)
    step = {"influence": [*influence], "target": nodes.named(target, found)}
    return _by_influence(graph, node_share, edge_share, found, step)


def _by_influence(graph, node_share: float, edge_share: float, found: np.ndarray, step: dict):
    """circuit-tracer's ``prune_graph``, by its formulas: nodes by influence, then edges by |share| x influence of the
    target among those nodes, normalised anew, then everything that lost its incoming or outgoing edges."""
    start, ends = nodes.start(graph, found), nodes.mask(graph, found)
    of_nodes, _ = _native.influence(arrays(graph), start, None, None, False)
    mask = of_nodes >= _TIES * _native.mass_threshold(of_nodes.reshape(-1), node_share)
    mask[0] = True
    mask |= ends
    _, factors = _native.influence(arrays(graph), start, None, mask, False)
    threshold = _TIES * _native.edge_threshold(arrays(graph), factors, mask, edge_share)
    return flow.keep_paths(flow.keep(graph, threshold, above=False, factors=factors, mask=mask), ends, step)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _share(value, name: str) -> float:
    if not (_is_number(value) and 0 < value <= 1):
        raise ValueError(f"{name} must be a share above 0 and at most 1, not {value!r}")
    return float(value)
