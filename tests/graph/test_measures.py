"""Every figure of the table against its definition in plain Python."""

import sys

import numpy as np
import pytest
import torch


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def gini(values):
    """Mean absolute difference over twice the mean: the definition that the sorted formula comes from."""
    values = list(values)
    if not sum(values):
        return 0.0
    return sum(abs(a - b) for a in values for b in values) / (2 * len(values) * sum(values))


def top90(values):
    values = sorted(values, reverse=True)
    held, total = 0.0, sum(values)
    for count, value in enumerate(values, 1):
        held += value
        if total and held >= 0.9 * total:
            return count
    return 0


def hubs(degrees):
    average = mean(degrees)
    spread = mean((one - average) ** 2 for one in degrees) ** 0.5
    return sum(one > average + spread for one in degrees)


def of_each(groups, weights):
    found = {}
    for group, weight in zip(groups, weights, strict=True):
        found.setdefault(group, []).append(abs(weight))
    return [1.0 if len(one) == 1 else gini(one) for one in found.values()]


def table_twin(graph, matrices, dropped):
    edges = [[(j, i, w) for j, row in enumerate(m) for i, w in enumerate(row) if w] for m in matrices]
    for layer in range(graph.num_layers + 1):
        into = edges[layer - 1] if layer else []
        out = edges[layer] if layer < graph.num_layers else []
        nodes = sorted({j for j, _, _ in into} | {i for _, i, _ in out})
        degrees_in = [sum(j == node for j, _, _ in into) for node in nodes]
        degrees_out = [sum(i == node for _, i, _ in out) for node in nodes]
        relevance = [float(graph.nodes[layer, node]) for node in nodes]
        size = list(map(abs, relevance))
        positive, negative = [r for r in relevance if r >= 0], [-r for r in relevance if r < 0]
        mass_in = sum(abs(w) for _, _, w in into)
        lost = [sum(pair[s] for pair in dropped[layer - 1]) for s in (0, 1)] if layer else [0.0, 0.0]
        center = sum(a * b for a, b in zip(nodes, size, strict=True)) / sum(size) if sum(size) else mean(nodes)
        yield {
            "layer": layer,
            "nodes": len(nodes),
            "edges": len(out),
            "fan_in": mean(degrees_in),
            "fan_out": mean(degrees_out),
            "sparsity": 1 - len(nodes) / graph.num_tokens,
            "mean_relevance": mean(size),
            "node_gini": gini(size),
            "mean_edge": mean(abs(w) for _, _, w in out),
            "edge_gini": gini(abs(w) for _, _, w in out),
            "gini_in": mean(of_each([j for j, _, _ in into], [w for _, _, w in into])),
            "gini_out": mean(of_each([i for _, i, _ in out], [w for _, _, w in out])),
            "same_position_share": sum(abs(w) for j, i, w in into if i == j) / mass_in if mass_in else 0.0,
            "dropped_positive": lost[0] + (float(graph.dropped_self[layer - 1, 0]) if layer else 0.0),
            "dropped_negative": lost[1] + (float(graph.dropped_self[layer - 1, 1]) if layer else 0.0),
            "top90": top90(size),
            "top90_share": top90(size) / len(size) if size else 0.0,
            "top90_positive": top90(positive),
            "top90_positive_share": top90(positive) / len(positive) if positive else 0.0,
            "top90_negative": top90(negative),
            "top90_negative_share": top90(negative) / len(negative) if negative else 0.0,
            "hubs_in": hubs(degrees_in),
            "hubs_out": hubs(degrees_out),
            "center_of_mass": center,
            "mean_lookback": mean(j - i for j, i, _ in into),
            "local_share": mean(i == j for j, i, _ in into),
        }


def rows_of(table):
    columns = {name: list(table[name]) for name in table}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_measures(graph, matrices, dropped):
    for one in (graph, graph.prune(mass=0.6)):
        found = rows_of(one.measures())
        expected = list(table_twin(one, matrices(one), dropped(one)))
        assert len(found) == one.num_layers + 1
        for mine, theirs in zip(found, expected, strict=True):
            assert list(mine) == list(theirs)
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_measures_of_a_larger_graph(random_graph, matrices, dropped):
    graph = random_graph(11, layers=3, tokens=40, density=0.4, exact=False, dtype=torch.float64)
    for mine, theirs in zip(rows_of(graph.measures()), table_twin(graph, matrices(graph), dropped(graph)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_measures_by_hand():
    from lrp_fast.graph import Edges, Graph

    edges = Edges(
        torch.tensor([1, 2]).int(),
        torch.tensor([0, 1, 4]),
        torch.tensor([0, 0, 1, 2]).int(),
        torch.tensor([2.0, -1.0, 3.0, 1.0]),
    )
    nodes = torch.tensor([[1.0, -3.0, 0.0, 0.0], [0.0, 2.0, 3.0, 0.0]])
    dropped = torch.tensor([[0.5, 0.0], [0.0, -0.25]])
    graph = Graph.from_transitions(nodes, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), [(edges, dropped)])
    below, above = rows_of(graph.measures())
    assert (below["nodes"], below["edges"], below["fan_out"], below["fan_in"]) == (3, 4, pytest.approx(4 / 3), 0)
    assert below["sparsity"] == 0.25 and below["mean_relevance"] == pytest.approx(4 / 3)
    assert below["mean_edge"] == 2 and below["edge_gini"] == pytest.approx((-3 * 1 - 2 + 2 + 3 * 3) / (4 * 8))
    assert below["gini_out"] == pytest.approx((1 / 6 + 1 + 1) / 3)  # |2| and |-1|, one, one
    assert below["top90"] == 2 and below["top90_positive"] == 1 and below["top90_negative"] == 1
    assert below["top90_positive_share"] == 0.5 and below["center_of_mass"] == 0.75
    assert (above["nodes"], above["edges"], above["fan_in"], above["fan_out"]) == (2, 0, 2, 0)
    assert above["same_position_share"] == pytest.approx(2 / 8) and above["local_share"] == 0.25
    assert above["mean_lookback"] == pytest.approx((1 + 2 + 1 + 0) / 4)
    assert (above["dropped_positive"], above["dropped_negative"]) == (0.5, -0.25)
    assert above["hubs_in"] == 0 and below["hubs_out"] == 1  # 2, 1, 1: mean 4/3, deviation 0.47


def test_a_table_without_pandas(random_graph, monkeypatch):
    graph = random_graph(1)
    expected = graph.measures()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    table = graph.measures()
    assert type(table) is dict and list(table) == list(expected)
    for name in table:
        np.testing.assert_array_equal(table[name], list(expected[name]))
    assert all(type(value) in (int, float) for column in table.values() for value in column)


def test_a_table_with_pandas(random_graph):
    pandas = pytest.importorskip("pandas")
    table = random_graph(1).measures()
    assert isinstance(table, pandas.DataFrame) and table.shape == (4, 26)
    assert sys.modules["pandas"] is pandas
