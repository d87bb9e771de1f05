"""Graphs as other tools read them: networkx, pandas, node-link JSON.

All of them hold the same: the edges of `Graph.entries`, so that residual, MLP and attention at one position are one
edge, and the nodes that such an edge leads to or from.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import numpy as np

from ..files import without_infinity

_MOST_EDGES = 2_000_000  # as JSON about 100 bytes each


class EdgeList(NamedTuple):
    """All edges of a graph, by layer, then target, then source.

    Attributes:
        layers: (E,) int32, the layer of the source; the target is one layer above.
        sources, targets: (E,) int32 positions.
        weights: (E,) float64 signed relevance.
    """

    layers: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def edge_list(graph) -> EdgeList:
    """The edges of every transition one behind the other, self edges included."""
    entries = [graph.entries(layer) for layer in range(graph.num_layers)]
    return EdgeList(
        np.repeat(np.arange(graph.num_layers, dtype=np.int32), [len(one.weights) for one in entries]),
        np.concatenate([one.sources.numpy() for one in entries]),
        np.concatenate([one.targets.numpy() for one in entries]),
        np.concatenate([one.weights.numpy() for one in entries]),
    )


def held(graph, edges: EdgeList) -> np.ndarray:
    """(L + 1, N) bool: the nodes that an edge leads to or from."""
    flags = np.zeros(tuple(graph.nodes.shape), bool)
    flags[edges.layers, edges.sources] = True
    flags[edges.layers + 1, edges.targets] = True
    return flags


def to_networkx(graph):
    networkx = _optional("networkx")
    edges = few_edges(graph)
    found = networkx.DiGraph(**_about(graph))
    for layer, position in np.argwhere(held(graph, edges)).tolist():
        found.add_node((layer, position), **_node(graph, layer, position))
    for layer, source, target, weight in zip(*(one.tolist() for one in edges), strict=True):
        found.add_edge((layer, source), (layer + 1, target), weight=weight, self_edge=source == target)
    return found


def to_pandas(graph):
    pandas = _optional("pandas")
    edges = edge_list(graph)
    layers, positions = held(graph, edges).nonzero()
    nodes = {"layer": layers, "position": positions, "relevance": graph.nodes.numpy()[layers, positions]}
    if graph.tokens is not None:
        nodes["token"] = [graph.tokens[position] for position in positions.tolist()]
    columns = {"layer": edges.layers, "source": edges.sources, "target": edges.targets, "weight": edges.weights}
    columns["self_edge"] = edges.sources == edges.targets
    return pandas.DataFrame(columns), pandas.DataFrame(nodes)


def to_node_link(graph) -> dict:
    edges = few_edges(graph)
    links = [
        {"source": f"{layer}:{source}", "target": f"{layer + 1}:{target}", "weight": weight}
        | {"self_edge": source == target}
        for layer, source, target, weight in zip(*(one.tolist() for one in edges), strict=True)
    ]
    nodes = [
        {"id": f"{layer}:{position}", **_node(graph, layer, position)}
        for layer, position in np.argwhere(held(graph, edges)).tolist()
    ]
    return {"directed": True, "multigraph": False, "graph": _about(graph), "nodes": nodes, "links": links}


def _about(graph) -> dict:
    about = {"num_layers": graph.num_layers, "num_tokens": graph.num_tokens, "causal": graph.causal}
    return about | {"dropped_mass": dropped(graph), "manifest": without_infinity(graph.manifest)}


def dropped(graph) -> list[float]:
    """The positive and the negative relevance on all edges that were not kept, self edges included."""
    return (graph.dropped_mass.double().sum(0) + graph.dropped_self.double().sum(0)).tolist()


def _node(graph, layer: int, position: int) -> dict:
    about = {"layer": layer, "position": position, "relevance": graph.nodes[layer, position].item()}
    return about if graph.tokens is None else about | {"token": graph.tokens[position]}


def few_edges(graph) -> EdgeList:
    """As `edge_list`; ValueError for more of them than objects of Python are good for."""
    edges = edge_list(graph)
    if len(edges.weights) > _MOST_EDGES:
        raise ValueError(
            f"the graph has {len(edges.weights):,} edges, and more than {_MOST_EDGES:,} are too many to be written one "
            "by one: prune it first, such as graph.prune(influence=(0.8, 0.98)), or take to_pandas"
        )
    return edges


def _optional(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install {module}, the extra [{module}] here") from error
