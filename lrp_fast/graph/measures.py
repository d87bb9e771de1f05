"""Figures of a graph, a row for each layer.

They are those of the code published with "Contrastive Attribution in the Wild" (arXiv 2604.17761, GraphMetrics), by its
formulas. There, a graph is cut down to the ancestors of the target first: ``graph.subgraph(graph.ancestors())``. Here,
the nodes of a layer are those that an edge leads to or from, which for such a graph is the same; edges are the entries
of ``dense``, so that residual, MLP and attention at one position are one edge, as there. "Incoming" edges lead into the
layer, "outgoing" ones out of it; what would be a mean over nothing is 0.

Connectivity
    layer                   0 is the embeddings
    nodes                   n
    edges                   outgoing edges
    fan_in, fan_out         mean number of incoming and outgoing edges of a node
    sparsity                1 - n / N
Relevance
    mean_relevance          mean |R| of the nodes
    node_gini               Gini coefficient of |R|
    mean_edge               mean |w| of the outgoing edges
    edge_gini               Gini coefficient of |w| of the outgoing edges
    gini_in, gini_out       Gini coefficient of |w| over the edges of one node, its incoming and its outgoing ones; the
                            mean over the nodes that have any. A node with a single edge counts as 1, as there
    same_position_share     of the incoming |w|, the part from the same position (there: "verticality ratio")
    dropped_positive, dropped_negative
                            incoming relevance that was not kept (not there: its graphs forget it)
Hubs
    top90, top90_positive, top90_negative
                            number of largest |R| that hold 90 % of the sum, over all nodes, those with R >= 0, R < 0
    top90_share, top90_positive_share, top90_negative_share
                            the same as a part of those nodes
    hubs_in, hubs_out       nodes whose number of edges exceeds the mean by more than the standard deviation (over n)
Position
    center_of_mass          mean position of the nodes, weighted by |R|; unweighted where all R are 0
    mean_lookback           mean of target position - source position over incoming edges, unweighted; of a graph that
                            is not causal, what comes from behind counts as less than 0
    local_share             of the incoming edges, the part from the same position, unweighted

The Gini coefficient of x_1 <= ... <= x_n is sum_i (2 i - n - 1) x_i / (n sum_i x_i), 0 where the sum is 0.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from .. import _native

_NOTHING = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))


def columns(graph) -> dict[str, list]:
    """The table as a list for each name."""
    rows = []
    incoming = _NOTHING
    for layer in range(graph.num_layers + 1):
        outgoing = _NOTHING if layer == graph.num_layers else tuple(one.numpy() for one in graph.entries(layer))
        dropped = _dropped(graph, layer - 1) if layer else (0.0, 0.0)
        rows.append({"layer": layer, **_figures(graph.nodes[layer].double().numpy(), incoming, outgoing, dropped)})
        incoming = outgoing
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(graph):
    found = columns(graph)
    if importlib.util.find_spec("pandas") is None:
        return found
    import pandas

    return pandas.DataFrame(found)


def _dropped(graph, layer: int) -> tuple[float, float]:
    return tuple((graph.dropped(layer).double().sum(0) + graph.dropped_self[layer].double()).tolist())


def _figures(relevance: np.ndarray, incoming, outgoing, dropped: tuple[float, float]) -> dict[str, float]:
    num_tokens = len(relevance)
    targets, in_sources, in_weights = incoming
    _, sources, out_weights = outgoing
    in_weights, out_weights = np.abs(in_weights), np.abs(out_weights)
    degrees_in = np.bincount(targets, minlength=num_tokens)
    degrees_out = np.bincount(sources, minlength=num_tokens)
    held = np.flatnonzero(degrees_in + degrees_out)
    degrees_in, degrees_out, relevance = degrees_in[held], degrees_out[held], relevance[held]
    magnitude = np.abs(relevance)
    positive, negative = magnitude[relevance >= 0], magnitude[relevance < 0]
    same = targets == in_sources
    lookback = targets.astype(np.int64) - in_sources
    return {
        "nodes": len(held),
        "edges": len(out_weights),
        "fan_in": _mean(degrees_in),
        "fan_out": _mean(degrees_out),
        "sparsity": 1 - len(held) / num_tokens,
        "mean_relevance": _mean(magnitude),
        "node_gini": _gini(magnitude),
        "mean_edge": _mean(out_weights),
        "edge_gini": _gini(out_weights),
        "gini_in": _mean(_gini_by(targets, in_weights, num_tokens)),
        "gini_out": _mean(_gini_by(sources, out_weights, num_tokens)),
        "same_position_share": _ratio(in_weights[same].sum(), in_weights.sum()),
        "dropped_positive": dropped[0],
        "dropped_negative": dropped[1],
        "top90": _top90(magnitude),
        "top90_share": _ratio(_top90(magnitude), len(magnitude)),
        "top90_positive": _top90(positive),
        "top90_positive_share": _ratio(_top90(positive), len(positive)),
        "top90_negative": _top90(negative),
        "top90_negative_share": _ratio(_top90(negative), len(negative)),
        "hubs_in": _hubs(degrees_in),
        "hubs_out": _hubs(degrees_out),
        "center_of_mass": _ratio((held * magnitude).sum(), magnitude.sum()) if magnitude.any() else _mean(held),
        "mean_lookback": _mean(lookback),
        "local_share": _mean(same),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else 0.0


def _gini(values: np.ndarray) -> float:
    n, total = len(values), values.sum()
    return _ratio(((2 * np.arange(1, n + 1) - n - 1) * np.sort(values)).sum(), n * total)


def _gini_by(groups: np.ndarray, values: np.ndarray, num_tokens: int) -> np.ndarray:
    """The Gini coefficient of the values of every group that has any; 1 where there is one value."""
    counts = np.bincount(groups, minlength=num_tokens)
    found = _native.grouped_gini(groups, values, num_tokens)
    return np.where(counts == 1, 1.0, found)[counts > 0]


def _top90(values: np.ndarray) -> int:
    sums = np.cumsum(np.sort(values)[::-1])
    return int(np.searchsorted(sums, 0.9 * values.sum())) + 1 if values.any() else 0


def _hubs(degrees: np.ndarray) -> int:
    return int((degrees > degrees.mean() + degrees.std()).sum()) if len(degrees) else 0
