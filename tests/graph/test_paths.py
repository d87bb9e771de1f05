"""The best paths against the enumeration of all of them."""

from fractions import Fraction

import pytest
import torch

from lrp_fast.graph import Edges, Graph


def paths_twin(graph, matrices, dropped, targets):
    """Every path to the targets as (share, positions from the inputs up), in the promised order.

    Shares are multiplied from the inputs up, so that with floats even their rounding is the same.
    """
    known = [[(1.0, (i,))] for i in range(graph.num_tokens)]
    layers = [known]
    for layer, matrix in enumerate(matrices):
        above = []
        for target, row in enumerate(matrix):
            positive, negative = dropped[layer][target]
            total = positive - negative + sum(map(abs, row))
            found = []
            for source, weight in enumerate(row):
                for rank, (share, positions) in enumerate(layers[-1][source] if weight else []):
                    found.append((share * (abs(weight) / total), source, rank, (*positions, target)))
            found.sort(key=lambda one: (-one[0], one[1], one[2]))
            above.append([(share, positions) for share, _, _, positions in found])
        layers.append(above)
    total = sum(abs(float(graph.nodes[node])) for node in targets)
    found = []
    for index, (layer, position) in enumerate(targets):
        for rank, (share, positions) in enumerate(layers[layer][position]):
            found.append((share * (abs(float(graph.nodes[layer, position])) / total), index, rank, positions))
    found.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [(share, positions) for share, _, _, positions in found if share]


def check_paths(graph, expected, target, ks):
    for k in ks:
        found = graph.paths(k, target)
        assert [one.positions for one in found] == [positions for _, positions in expected[:k]]
        assert [one.share for one in found] == pytest.approx([share for share, _ in expected[:k]], rel=1e-12)


def test_paths(graph, matrices, dropped):
    layers = graph.num_layers
    for target in [(layers, graph.num_tokens - 1), (layers - 1, graph.num_tokens // 2)]:
        graph.nodes[target] = 1.5
        expected = paths_twin(graph, matrices(graph), dropped(graph), [target])
        check_paths(graph, expected, target, (1, 2, 3, 7, 50, len(expected) + 1, 10**30))


def test_paths_to_several_nodes(random_graph, matrices, dropped):
    for seed in (1, 3, 5):
        graph = random_graph(seed, layers=4, tokens=5, density=0.8)
        targets = [(0, 3), (2, 1), (4, 3), (4, 4)]
        for node, relevance in zip(targets, (0.25, -0.5, -2.0, 1.25), strict=True):
            graph.nodes[node] = relevance
        expected = paths_twin(graph, matrices(graph), dropped(graph), targets)
        assert len(expected) > 10
        check_paths(graph, expected, targets[::-1], (1, 4, 12, len(expected) + 1))


def test_shares_of_all_paths_from_a_node_are_its_influence(random_graph):
    graph = random_graph(9, layers=4, tokens=6, density=0.9, exact=False, dtype=torch.float64)
    shares = torch.zeros(6, dtype=torch.float64)
    for share, positions in graph.paths(10**6):
        shares[positions[0]] += share
    torch.testing.assert_close(shares, graph.influence()[0], rtol=1e-12, atol=1e-15)


def test_pruning_does_not_change_the_share_of_a_path(random_graph):
    graph = random_graph(9, layers=4, tokens=6, density=0.9, exact=False, dtype=torch.float64)
    kept = graph.prune(threshold=0.6).paths(10**6)
    shares = {one.positions: one.share for one in graph.paths(10**6)}
    assert 0 < len(kept) < len(shares)
    assert [one.share for one in kept] == pytest.approx([shares[one.positions] for one in kept], rel=1e-12)


def ladder(layers, small):
    """Two positions; of what arrives at 0, all but a little is dropped, so that shares of long paths underflow."""
    dtype = torch.float64
    edges = Edges(
        torch.tensor([0, 1]).int(),
        torch.tensor([0, 2, 4]),
        torch.tensor([0, 1, 0, 1]).int(),
        torch.tensor([1.0, small, 0.5, 0.25], dtype=dtype),
    )
    dropped = torch.tensor([[2.0**20 - 1 - small, 0.0], [0.0, 0.75 - 2.0**19]], dtype=dtype)
    nodes = torch.ones(layers + 1, 2, dtype=dtype)
    nodes[-1, 1] = 0
    return Graph.from_transitions(nodes, torch.zeros(layers, 2, dtype=dtype), [(edges, dropped)] * layers, causal=False)


@pytest.mark.parametrize("small", [0.5, 2.0**-300])
def test_small_shares(small, dropped, matrices):
    graph = ladder(3, small)
    expected = paths_twin(graph, matrices(graph), dropped(graph), [(3, 0)])
    assert len(expected) == 8
    check_paths(graph, expected, None, (1, 7, 9))


@pytest.mark.parametrize("small", [0.5, 2.0**-300, 2.0**-900])
def test_long_paths_whose_shares_underflow_keep_their_order(small):
    graph = ladder(300, small)
    found = graph.paths(40)
    assert len(set(found)) == 40 and all(one.share == 0.0 for one in found)
    row_0, row_1 = ((Fraction(1) / 2**20, Fraction(small) / 2**20), (Fraction(1) / 2**20, Fraction(1) / 2**21))

    def share(positions):
        product = Fraction(1)
        for source, target in zip(positions, positions[1:], strict=False):
            product *= (row_1 if target else row_0)[source]
        return product

    shares = [share(one.positions) for one in found]
    assert shares == sorted(shares, reverse=True)
    # No path is better than staying at 0, and the next ones differ from it by a detour of one layer.
    assert found[0].positions == (0,) * 301
    assert shares[1] == share((1,) + (0,) * 300) or shares[1] == share((0,) * 150 + (1,) + (0,) * 150)


def test_many_layers_need_no_stack():
    graph = ladder(20_000, 0.5)
    assert [len(one.positions) for one in graph.paths(3)] == [20_001] * 3


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("1", TypeError)])
def test_k_is_a_count(random_graph, k, error):
    with pytest.raises(error, match="k must be"):
        random_graph(0).paths(k)
