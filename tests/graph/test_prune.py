"""Pruning against sorting, and against circuit-tracer's formulas on the whole adjacency matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lrp_fast import _native
from lrp_fast.graph import Graph


def mass_twin(values, share):
    """The smallest magnitude of the smallest set of largest magnitudes with the share, by sorting."""
    ordered = sorted((abs(value) for value in values if value), reverse=True)
    if not ordered:
        return float("inf")
    wanted, held = share * np.cumsum(ordered)[-1], 0.0  # one by one: from Python 3.12 on, sum() compensates
    for value in ordered:
        held += value
        if held >= wanted:
            return value
    return ordered[-1]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 63, 64, 65, 111, 1000])
def test_mass_threshold(n):
    rng = np.random.default_rng(n)
    for values in (
        rng.integers(0, 5, n) / 4,  # ties, zeros and exact sums
        rng.integers(0, 2**40, n) / 2**20,
        2.0 ** rng.integers(-40, 0, n),
        np.zeros(n),
        np.full(n, 0.375),
        np.full(n, 5e-324),
    ):
        for share in (1 / 1024, 0.25, 0.5, 0.75, 0.875, 1023 / 1024, 1.0):
            assert _native.mass_threshold(values, share) == mass_twin(values.tolist(), share)


def test_mass_threshold_of_random_values():
    values = np.abs(np.random.default_rng(0).standard_normal(5000)) ** 3
    for share in (0.01, 0.3, 0.8, 0.98, 0.9999, 1.0):
        assert _native.mass_threshold(values, share) == mass_twin(values.tolist(), share)


def test_mass_threshold_where_neighbours_differ_in_one_bit():
    values = (np.uint64(0x3FF0_0000_0000_0000) + np.arange(300, dtype=np.uint64)).view(np.float64)
    values = np.random.default_rng(0).permutation(values)
    for share in (0.0031, 0.5, 0.7, 0.9983):
        assert _native.mass_threshold(values, share) == mass_twin(values.tolist(), share)


@pytest.mark.parametrize("threshold", [0, 0.25, 0.3, 1.0, 2.0, 100])
def test_prune_by_threshold(graph, is_graph_with, threshold):
    is_graph_with(graph, graph.prune(threshold=threshold), lambda *edge: abs(edge[3]) > threshold)


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.875, 1])
def test_prune_by_mass(graph, matrices, is_graph_with, mass):
    smallest = [mass_twin([w for row in matrix for w in row], mass) for matrix in matrices(graph)]
    is_graph_with(graph, graph.prune(mass=mass), lambda layer, j, i, w: abs(w) >= smallest[layer])


def test_pruning_twice_remembers_what_was_dropped(graph, is_graph_with):
    once = graph.prune(mass=0.9).prune(threshold=0.5)
    threshold = [
        min(map(abs, graph.prune(mass=0.9).entries(n).weights.tolist()), default=0) for n in range(graph.num_layers)
    ]
    is_graph_with(graph, once, lambda layer, j, i, w: abs(w) >= threshold[layer] and abs(w) > 0.5)


def test_the_manifest_says_what_was_pruned(random_graph, tmp_path):
    graph = replace(random_graph(0), manifest={"value": 1.5})
    mask = torch.ones(graph.nodes.shape, dtype=torch.bool)
    mask[1, 2] = False
    kept = graph.prune(threshold=0.25).prune(mass=0.9).trim((-1, 5)).subgraph(mask).trim()
    steps = [
        {"threshold": 0.25},
        {"mass": 0.9},
        {"trim": {"target": [[3, 5]]}},
        {"subgraph": {"nodes": 23}},
        {"trim": {"target": None}},
    ]
    assert kept.manifest == {"value": 1.5, "pruned": steps} and graph.manifest == {"value": 1.5}
    kept.save(tmp_path / "kept.safetensors")
    assert Graph.load(tmp_path / "kept.safetensors").manifest == kept.manifest
    kept = kept.prune(influence=(0.8, 1), target=[(3, 4), (2, -1)]).prune(influence=[0.5, 0.5])
    by_influence = [{"influence": [0.8, 1], "target": [[2, 5], [3, 4]]}, {"influence": [0.5, 0.5], "target": None}]
    assert kept.manifest["pruned"] == steps + by_influence
    assert kept.group_by([0] * 6).prune(mass=1).manifest == {"group_by": kept.manifest, "pruned": [{"mass": 1}]}


def influence_twin(graph, matrices, targets, node_share, edge_share):
    """prune_graph of circuit-tracer, on the matrix over all nodes; the kept edges as (layer, target, source)."""
    layers, tokens = graph.num_layers, graph.num_tokens
    size = (layers + 1) * tokens
    adjacency = np.zeros((size, size))
    for layer, matrix in enumerate(matrices):
        adjacency[(layer + 1) * tokens : (layer + 2) * tokens, layer * tokens : (layer + 1) * tokens] = matrix
    at = [layer * tokens + position for layer, position in targets]
    relevance = np.abs(graph.nodes.double().numpy().reshape(-1)[at])
    start = np.zeros(size)
    start[at] = relevance / relevance.sum()

    def shares(matrix):
        mass = np.abs(matrix).sum(1, keepdims=True)
        return np.divide(np.abs(matrix), mass, where=mass > 0, out=np.zeros_like(matrix))

    def influence(matrix):
        found, arriving = np.zeros(size), start
        for _ in range(layers):
            arriving = arriving @ matrix
            found += arriving
        return found

    of_nodes = influence(shares(adjacency))
    kept_nodes = of_nodes >= mass_twin(of_nodes.tolist(), node_share) * (1 - 1e-12)
    kept_nodes[:tokens] = True
    kept_nodes[at] = True
    pruned = shares(np.where(kept_nodes[:, None] & kept_nodes[None], adjacency, 0))
    scores = pruned * (influence(pruned) + start)[:, None]
    kept = scores >= mass_twin(scores.reshape(-1).tolist(), edge_share) * (1 - 1e-12)
    kept &= scores > 0
    while True:
        inner = kept_nodes.copy()
        inner[:tokens] = True
        inner[at] = True
        alive = inner & (kept.any(0) | np.isin(np.arange(size), at)) & (kept.any(1) | (np.arange(size) < tokens))
        smaller = kept & alive[:, None] & alive[None]
        if (smaller == kept).all():
            break
        kept = smaller
    return {(j // tokens - 1, j % tokens, i % tokens) for j, i in zip(*kept.nonzero(), strict=True)}


@pytest.mark.parametrize("shares", [(0.8, 0.98), (0.5, 0.5), (0.3, 0.9), (1.0, 1.0)])
def test_prune_by_influence(graph, matrices, is_graph_with, shares):
    targets = [(graph.num_layers, graph.num_tokens - 1)]
    kept = influence_twin(graph, matrices(graph), targets, *shares)
    is_graph_with(graph, graph.prune(influence=shares), lambda layer, j, i, w: (layer, j, i) in kept)


@pytest.mark.parametrize("seed", range(6))
def test_prune_by_influence_cuts_no_chain(random_graph, seed):
    """Of one token, all influences are 1 but for rounding: none of them is stronger than another."""
    graph = random_graph(seed, layers=30, tokens=1, exact=False)
    graph = replace(graph, self_edges=torch.rand_like(graph.self_edges) + 4)
    kept = graph.prune(influence=(0.8, 0.98))
    assert all(torch.equal(kept.dense(layer), graph.dense(layer)) for layer in range(30))


@pytest.mark.parametrize("seed", range(6))
def test_prune_by_influence_on_several_nodes(random_graph, matrices, is_graph_with, seed):
    graph = random_graph(seed, layers=5, tokens=8, density=0.6, exact=False, dtype=torch.float64)
    targets = [(3, 2), (5, 6), (5, 7)]
    graph.nodes[-1, 6] = -0.7
    kept = influence_twin(graph, matrices(graph), targets, 0.7, 0.8)
    assert kept
    is_graph_with(
        graph, graph.prune(influence=(0.7, 0.8), target=targets), lambda layer, j, i, w: (layer, j, i) in kept
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of threshold=, mass= and influence=, not none"),
        ({"mass": 0.5, "threshold": 1.0}, "give one of .* not threshold and mass"),
        ({"mass": 0}, "mass must be a share above 0 and at most 1, not 0"),
        ({"mass": 1.5}, "mass must be a share"),
        ({"mass": True}, "mass must be a share"),
        ({"mass": float("nan")}, "mass must be a share"),
        ({"threshold": -1}, "threshold must be a finite number, 0 or above, not -1"),
        ({"threshold": float("nan")}, "threshold must be a finite number"),
        ({"influence": 0.8}, r"influence must be \(node share, edge share\)"),
        ({"influence": (0.8, 0)}, "influence must be a share"),
        ({"mass": 0.5, "target": (3, 1)}, "target= goes with influence=, not with mass="),
    ],
)
def test_pruning_that_makes_no_sense(random_graph, arguments, message):
    with pytest.raises(ValueError, match=message):
        random_graph(0).prune(**arguments)
