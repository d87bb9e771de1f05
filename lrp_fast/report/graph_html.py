"""One graph as one page: no server, no other file, no other host."""

from __future__ import annotations

import os

import numpy as np

from ..graph import Graph
from ..graph.export import EdgeList, dropped, edge_list, held
from ..graph.viewer import about
from .html import embedded, write_page
from .record import page_head

_MOST_EDGES = 20_000  # what a browser draws while one watches


def write_graph_html(graph: Graph, path: str | os.PathLike) -> None:
    """Write ``graph`` as a self-contained page to ``path``: whole or not at all.

    It holds the 20,000 edges of largest |weight| at most, and says how much the others hold: prune the graph first.
    """
    write_page("graph", _page_data(graph), path)


def _page_data(graph: Graph) -> dict:
    """What graph.js reads: the tokens that have nodes, the nodes, and the edges between them, the strongest first."""
    edges = edge_list(graph)
    magnitude = np.abs(edges.weights)
    strongest = np.argsort(-magnitude, kind="stable")[:_MOST_EDGES]
    drawn = EdgeList(*(one[strongest] for one in edges))
    shown = held(graph, drawn)
    positions = shown.any(0).nonzero()[0]
    shown = shown[:, positions]
    layers, columns = shown.nonzero()
    number = (np.cumsum(shown) - 1).reshape(shown.shape)  # of a node, where it is shown
    column = np.searchsorted(positions, np.arange(graph.num_tokens))
    return _about(graph) | {
        "num_layers": graph.num_layers,
        "num_tokens": graph.num_tokens,
        "num_edges": len(magnitude),
        "mass": float(magnitude.sum()),
        "dropped": dropped(graph),
        "tokens": None if graph.tokens is None else [graph.tokens[position] for position in positions.tolist()],
        "positions": embedded(positions, "<u4"),
        "node_layers": embedded(layers, "<u2"),
        "node_columns": embedded(columns, "<u4"),
        "relevance": embedded(graph.nodes.numpy()[layers, positions[columns]], "<f4"),
        "sources": embedded(number[drawn.layers, column[drawn.sources]], "<u4"),
        "targets": embedded(number[drawn.layers + 1, column[drawn.targets]], "<u4"),
        "weights": embedded(drawn.weights, "<f4"),
    }


def _about(graph: Graph) -> dict:
    """What was explained, by which rule; without it for a graph that does not say."""
    found = about(graph)
    return {"explained": None, "model": "", "rule": "", "bounded": ""} if found is None else page_head(found)
