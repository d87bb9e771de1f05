"""Differences and groups against plain Python."""

from dataclasses import replace

import numpy as np
import pytest
import torch


def raw(graph, layer):
    """{(target, source): weight} of the stored edges, and the listed rows."""
    rows, indptr, columns, weights = (one.tolist() for one in graph.edges(layer))
    found = {}
    for row, begin, end in zip(rows, indptr, indptr[1:], strict=False):
        found |= {(row, i): w for i, w in zip(columns[begin:end], weights[begin:end], strict=True)}
    return found, rows


def check(graph, layer, edges, dropped):
    found, rows = raw(graph, layer)
    assert rows == sorted(dropped)
    assert list(found) == sorted(key for key, weight in edges.items() if weight)
    assert found == pytest.approx({key: weight for key, weight in edges.items() if weight}, rel=1e-6)
    assert graph.dropped(layer).flatten().tolist() == pytest.approx([x for row in rows for x in dropped[row]], rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_difference(random_graph, seed):
    shape = [(3, 6), (1, 1), (4, 1), (2, 9)][seed % 4]
    kinds = [torch.float32, torch.float64]
    a = random_graph(seed, *shape, density=0.6, exact=seed < 4, dtype=kinds[seed % 2])
    b = random_graph(seed + 100, *shape, density=0.4, exact=seed < 4, dtype=kinds[seed // 4])
    a, b = a.prune(mass=0.95), b.prune(mass=0.95)
    found = a - b
    assert found.nodes.dtype == torch.promote_types(a.nodes.dtype, b.nodes.dtype)
    assert torch.equal(found.nodes, a.nodes - b.nodes) and torch.equal(found.self_edges, a.self_edges - b.self_edges)
    assert found.manifest == {"difference": [a.manifest, b.manifest]} and found.tokens == a.tokens
    for layer in range(a.num_layers):
        (of_a, rows_a), (of_b, rows_b) = raw(a, layer), raw(b, layer)
        edges = {key: of_a.get(key, 0.0) - of_b.get(key, 0.0) for key in of_a | of_b}
        dropped = {row: [0.0, 0.0] for row in rows_a + rows_b}
        for row, (positive, negative) in zip(rows_a, a.dropped(layer).tolist(), strict=True):
            dropped[row] = [positive, negative]
        for row, (positive, negative) in zip(rows_b, b.dropped(layer).tolist(), strict=True):
            dropped[row] = [dropped[row][0] - negative, dropped[row][1] - positive]
        check(found, layer, edges, {row: tuple(pair) for row, pair in dropped.items()})
        of_a, of_b = a.dropped_self[layer].tolist(), b.dropped_self[layer].tolist()
        assert found.dropped_self[layer].tolist() == pytest.approx([of_a[0] - of_b[1], of_a[1] - of_b[0]], rel=1e-6)


def test_the_difference_of_a_graph_to_itself_is_empty(random_graph):
    graph = random_graph(3)
    nothing = graph.difference(graph)
    assert not len(nothing.columns) and not nothing.self_edges.any() and not nothing.nodes.any()
    assert torch.equal(nothing.dropped_mass[:, 0], graph.dropped_mass[:, 0] - graph.dropped_mass[:, 1])


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (lambda g: 1, TypeError, "other must be a Graph, not int"),
        (lambda g: replace(g, tokens=["x", *g.tokens[1:]]), ValueError, "token 0 is 't0' in one, 'x' in the other"),
    ],
)
def test_graphs_that_have_no_difference(random_graph, other, error, message):
    graph = random_graph(3)
    with pytest.raises(error, match=message):
        graph.difference(other(graph))
    with pytest.raises(ValueError, match=r"the same layers and tokens, not \(4, 6\) and \(4, 5\) nodes"):
        graph.difference(random_graph(3, tokens=5))
    with pytest.raises(TypeError, match="unsupported operand"):
        graph - 1


def test_groups(graph):
    tokens = graph.num_tokens
    graph = graph.prune(mass=0.95)
    for groups in ([0] * tokens, list(range(tokens)), [i % 3 for i in range(tokens)], [i // 2 for i in range(tokens)]):
        found = graph.group_by(groups)
        count = max(groups) + 1
        assert found.num_tokens == count and found.tokens is None and found.manifest == {"group_by": graph.manifest}
        sums = torch.zeros(tokens, count, dtype=torch.float64)
        sums[torch.arange(tokens), torch.tensor(groups)] = 1
        for name in ("nodes", "self_edges"):
            expected = (getattr(graph, name).double() @ sums).to(graph.nodes.dtype)
            torch.testing.assert_close(getattr(found, name), expected)
        assert torch.equal(found.dropped_self, graph.dropped_self)
        for layer in range(graph.num_layers):
            of, rows = raw(graph, layer)
            edges, dropped = {}, {}
            for (j, i), weight in of.items():
                key = (groups[j], groups[i])
                edges[key] = edges.get(key, 0.0) + weight
            for row, (positive, negative) in zip(rows, graph.dropped(layer).tolist(), strict=True):
                before = dropped.get(groups[row], (0.0, 0.0))
                dropped[groups[row]] = (before[0] + positive, before[1] + negative)
            if graph.nodes.dtype == torch.float32 or count == tokens:  # multiples of 1/4, or single terms
                check(found, layer, {key: w for key, w in edges.items() if abs(w) > 1e-9}, dropped)


def test_group_sums_are_made_in_float64(random_graph):
    graph = random_graph(3, layers=1, tokens=60, density=1.0)
    graph.weights[:] = 2.0**-25
    graph.weights[0] = 1.0
    assert len(graph.weights) > 1000
    assert graph.group_by([0] * 60).weights.item() == np.float32(1 + 2.0**-25 * (len(graph.weights) - 1)) > 1


def test_named_groups(random_graph):
    graph = random_graph(0)
    found = graph.group_by(torch.tensor([0, 0, 2, 2, 2, 3]), ["system", "nothing", "user", "assistant"])
    assert found.tokens == ["system", "nothing", "user", "assistant"]
    assert found.num_tokens == 4 and not found.nodes[:, 1].any()


@pytest.mark.parametrize(
    ("groups", "names", "message"),
    [
        ([0] * 5, None, "groups must be 6 whole numbers, one a token, not int64"),
        ([0.0] * 6, None, "groups must be 6 whole numbers"),
        ([0, 0, 0, 0, 0, -1], None, "groups must be numbered 0 to 5, and -1 is there"),
        ([0, 0, 0, 0, 0, 10**9], None, "groups must be numbered 0 to 5, and 1000000000 is there"),
        ([0, 0, 0, 0, 0, 2], ["a", "b"], "groups must be numbered 0 to 1, and 2 is there"),
    ],
)
def test_groups_that_do_not_fit(random_graph, groups, names, message):
    with pytest.raises(ValueError, match=message):
        random_graph(0).group_by(groups, names)
