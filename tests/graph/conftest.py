"""Random graphs, and the plain matrices that the slow twins work on."""

import numpy as np
import pytest
import torch

from lrp_fast.graph import Edges, Graph


def make_graph(seed, layers=3, tokens=6, density=0.5, exact=True, dtype=torch.float32, causal=True):
    """A graph with unlisted rows, empty rows, self edges that are 0 or cancel the diagonal, and dropped mass.

    ``exact``: weights are multiples of 1/4 below 2, so that sums are exact and many weights tie.
    """
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        values = rng.integers(-8, 9, shape) / 4 if exact else rng.standard_normal(shape)
        return torch.from_numpy(values).to(dtype)

    self_edges = numbers(layers, tokens)
    self_edges[torch.from_numpy(rng.random((layers, tokens)) < 0.3)] = 0
    transitions = []
    for layer in range(layers):
        listed = np.flatnonzero(rng.random(tokens) < 0.8) if rng.random() < 0.9 else np.zeros(0, int)
        columns, weights, counts = [], [], []
        for row in listed:
            present = np.flatnonzero(rng.random(row + 1 if causal else tokens) < density)
            some = numbers(len(present))
            if row in present and rng.random() < 0.3:
                some[list(present).index(row)] = -self_edges[layer, row]
            columns.append(torch.from_numpy(present).int())
            weights.append(some)
            counts.append(len(present))
        empty = torch.zeros(0, dtype=dtype)
        edges = Edges(
            torch.from_numpy(listed).int(),
            torch.tensor([0, *counts]).cumsum(0),
            torch.cat([empty.int(), *columns]),
            torch.cat([empty, *weights]),
        )
        dropped = numbers(len(listed), 2).abs() * torch.tensor([1, -1], dtype=dtype)
        transitions.append((edges, dropped))
    nodes = numbers(layers + 1, tokens)
    nodes[-1, :-1] = 0
    nodes[-1, -1] = 1.5
    texts = [f"t{i}" for i in range(tokens)]
    return Graph.from_transitions(nodes, self_edges, transitions, texts, {"model": "random", "seed": seed}, causal)


def matrices_of(graph):
    """For every transition a list of rows of Python floats: weight [target][source], self edges included."""
    found = []
    for layer in range(graph.num_layers):
        matrix = [[0.0] * graph.num_tokens for _ in range(graph.num_tokens)]
        rows, indptr, columns, weights = (one.tolist() for one in graph.edges(layer))
        for row, begin, end in zip(rows, indptr, indptr[1:], strict=False):
            for column, weight in zip(columns[begin:end], weights[begin:end], strict=True):
                matrix[row][column] += weight
        for position, weight in enumerate(graph.self_edges[layer].tolist()):
            matrix[position][position] += weight
        found.append(matrix)
    return found


def dropped_of(graph):
    """For every transition N pairs (positive, negative), (0, 0) where the target is not listed."""
    found = []
    for layer in range(graph.num_layers):
        pairs = [(0.0, 0.0)] * graph.num_tokens
        for row, pair in zip(graph.edges(layer).rows.tolist(), graph.dropped(layer).tolist(), strict=True):
            pairs[row] = tuple(pair)
        found.append(pairs)
    return found


@pytest.fixture(scope="session")
def random_graph():
    return make_graph


@pytest.fixture(scope="session")
def matrices():
    return matrices_of


@pytest.fixture(scope="session")
def dropped():
    return dropped_of


def check_kept(graph, kept, is_kept):
    """``kept`` is ``graph`` with the edges that is_kept(layer, target, source, weight) accepts, the others dropped."""
    before, after = matrices_of(graph), matrices_of(kept)
    for layer in range(graph.num_layers):
        listed = graph.edges(layer).rows.tolist()
        assert kept.edges(layer).rows.tolist() == listed
        lost_self = [0.0, 0.0]
        for target, row in enumerate(before[layer]):
            lost = list(dropped_of(graph)[layer][target])
            for source, weight in enumerate(row):
                if weight and is_kept(layer, target, source, weight):
                    assert after[layer][target][source] == weight
                    continue
                assert after[layer][target][source] == 0
                (lost if target in listed else lost_self)[weight < 0] += weight
            assert dropped_of(kept)[layer][target] == pytest.approx(tuple(lost), rel=1e-6)
        assert kept.dropped_self[layer].tolist() == pytest.approx(lost_self, rel=1e-6)
    assert torch.equal(kept.nodes, graph.nodes) and kept.tokens == graph.tokens
    assert kept.manifest["pruned"] and kept.manifest == graph.manifest | {"pruned": kept.manifest["pruned"]}


@pytest.fixture(scope="session")
def is_graph_with():
    return check_kept


CASES = [
    dict(zip(("layers", "tokens", "density", "exact", "causal", "dtype"), case, strict=True), seed=seed)
    for seed, case in enumerate(
        [
            (1, 1, 1.0, True, True, torch.float32),
            (1, 1, 0.0, True, True, torch.float64),
            (4, 1, 1.0, True, True, torch.float32),
            (1, 7, 0.5, True, True, torch.float32),
            (3, 5, 0.7, True, True, torch.float32),
            (3, 5, 0.7, True, False, torch.float64),
            (3, 5, 0.1, True, True, torch.float32),
            (2, 6, 0.0, True, True, torch.float32),
            (4, 5, 0.6, False, True, torch.float32),
            (4, 5, 0.6, False, False, torch.float64),
            (5, 4, 0.9, True, True, torch.float64),
            (3, 6, 0.5, True, True, torch.float32),
        ]
    )
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: "L{layers}N{tokens}d{density}-{seed}".format(**case))
def graph(request):
    """Small graphs of many kinds."""
    return make_graph(**request.param)
