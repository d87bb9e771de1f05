"""Influence, reachability and subgraphs against plain Python."""

import ctypes
import sys
import threading
import time

import numpy as np
import pytest
import torch

from lrp_fast import _native
from lrp_fast.graph import Edges, Graph
from lrp_fast.graph.native import arrays


def influence_twin(graph, matrices, dropped, targets, signed):
    """Sum over paths of products of shares, one node after the other."""
    total = sum(abs(float(graph.nodes[node])) for node in targets)
    start = {n: (float(graph.nodes[n]) if signed else abs(float(graph.nodes[n]))) / total for n in targets}
    found = [[0.0] * graph.num_tokens for _ in range(graph.num_layers + 1)]
    for layer in range(graph.num_layers - 1, -1, -1):
        for target, row in enumerate(matrices[layer]):
            positive, negative = dropped[layer][target]
            mass = sum(map(abs, row)) + positive - negative
            arriving = found[layer + 1][target] + start.get((layer + 1, target), 0)
            sign = -1 if signed and graph.nodes[layer + 1, target] < 0 else 1
            for source, weight in enumerate(row):
                if weight:
                    found[layer][source] += arriving * sign * (weight if signed else abs(weight)) / mass
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("signed", [False, True])
def test_influence(graph, matrices, dropped, signed):
    last = (graph.num_layers, graph.num_tokens - 1)
    expected = influence_twin(graph, matrices(graph), dropped(graph), [last], signed)
    found = graph.influence(signed=signed)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(graph.influence((-1, -1), signed), found, rtol=0, atol=0)


@pytest.mark.parametrize("signed", [False, True])
def test_influence_on_several_nodes_of_several_layers(random_graph, matrices, dropped, signed):
    graph = random_graph(5, layers=4, tokens=9, density=0.8, exact=False)
    targets = [(1, 3), (3, 8), (4, 8), (3, 0)]
    expected = influence_twin(graph, matrices(graph), dropped(graph), targets, signed)
    torch.testing.assert_close(graph.influence(targets, signed), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("signed", [False, True])
def test_no_target_is_every_node_of_the_last_layer_that_holds_relevance(random_graph, signed):
    graph = random_graph(5, layers=4, tokens=9, density=0.8, exact=False)
    graph.nodes[-1] = torch.tensor([0.5, 0, -0.25, 1, 0, 0, 2, -3, 0])
    named = [(4, i) for i in (7, 0, 6, 2, 3)]
    assert torch.equal(graph.influence(signed=signed), graph.influence(named, signed))
    assert torch.equal(graph.ancestors(), graph.ancestors(named))
    assert graph.paths(9) == graph.paths(9, named)
    for trimmed, by_name in ((graph.trim(), graph.trim(named)), pruned_by_influence(graph, named)):
        assert torch.equal(trimmed.columns, by_name.columns) and torch.equal(trimmed.indptr, by_name.indptr)


def pruned_by_influence(graph, target):
    return graph.prune(influence=(0.6, 0.6)), graph.prune(influence=(0.6, 0.6), target=target)


def test_influence_of_all_nodes_of_a_layer_is_1_where_nothing_was_dropped(random_graph):
    graph = random_graph(5, layers=4, tokens=9, density=1.0, exact=False)
    graph.dropped_mass.zero_()
    graph.self_edges[:] = 0.5  # no node without an incoming edge
    torch.testing.assert_close(graph.influence()[:-1].sum(1), torch.ones(4, dtype=torch.float64))
    assert not graph.influence()[-1].any()


def test_signed_influence_is_relevance_where_relevance_is_conserved_with_its_sign():
    """Rows and columns sum to their nodes' relevance, rows without cancelling: influence is R / sum |R_target|."""
    rng, tokens = np.random.default_rng(0), 7
    nodes, transitions = [np.where(np.arange(tokens) < 5, 0, [0] * 5 + [2.0, -0.5])], []
    for _ in range(3):
        shares = np.tril(rng.random((tokens, tokens)))
        matrix = nodes[0][:, None] * shares / shares.sum(1, keepdims=True)
        nodes.insert(0, matrix.sum(0))
        rows, columns = np.tril_indices(tokens)
        edges = Edges(
            torch.arange(tokens).int(),
            torch.arange(tokens + 1).cumsum(0),
            torch.from_numpy(columns).int(),
            torch.from_numpy(matrix[rows, columns]),
        )
        transitions.insert(0, (edges, torch.zeros(tokens, 2).double()))
    nodes = torch.tensor(np.array(nodes))
    assert (nodes[1] < 0).any() and (nodes[1] > 0).any()
    graph = Graph.from_transitions(nodes, torch.zeros(3, tokens).double(), transitions)
    torch.testing.assert_close(graph.influence(signed=True)[:-1], nodes[:-1] / 2.5, rtol=1e-12, atol=1e-15)


def reach_twin(matrices, nodes, num_layers, forward):
    reached = set(nodes)
    for layer in range(num_layers) if forward else range(num_layers - 1, -1, -1):
        for target, row in enumerate(matrices[layer]):
            for source, weight in enumerate(row):
                if weight and forward and (layer, source) in reached:
                    reached.add((layer + 1, target))
                if weight and not forward and (layer + 1, target) in reached:
                    reached.add((layer, source))
    return reached


def as_set(mask):
    return set(map(tuple, mask.nonzero().tolist()))


def test_ancestors_and_descendants(graph, matrices):
    edges = matrices(graph)
    layers, tokens = graph.num_layers, graph.num_tokens
    for node in [(layers, tokens - 1), (layers // 2, tokens // 2), (0, 0), (layers, 0)]:
        assert as_set(graph.ancestors(node)) == reach_twin(edges, [node], layers, False)
        assert as_set(graph.descendants(node)) == reach_twin(edges, [node], layers, True)
    inputs = [(0, i) for i in range(tokens)]
    assert as_set(graph.descendants()) == reach_twin(edges, inputs, layers, True)
    assert torch.equal(graph.ancestors(), graph.ancestors((layers, tokens - 1)))


def test_subgraph(graph, is_graph_with):
    mask = torch.rand(graph.nodes.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    is_graph_with(graph, graph.subgraph(mask), lambda layer, j, i, _: bool(mask[layer, i] and mask[layer + 1, j]))
    is_graph_with(graph, graph.subgraph(torch.ones_like(mask)), lambda *_: True)
    assert not graph.subgraph(torch.zeros_like(mask)).entries(0).weights.any()


def test_trim_leaves_only_what_lies_on_a_path(graph, matrices, is_graph_with):
    edges, layers = matrices(graph), graph.num_layers
    for target in [(layers, graph.num_tokens - 1), (max(1, layers - 1), 0)]:
        up = reach_twin(edges, [(0, i) for i in range(graph.num_tokens)], layers, True)
        on_path = up & reach_twin(edges, [target], layers, False)
        is_graph_with(graph, graph.trim(target), lambda layer, j, i, _, on=on_path: {(layer, i), (layer + 1, j)} <= on)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ((4, 0), ValueError, r"target \(4, 0\) is outside the graph's 4 layers of 6 nodes"),
        ((0, -7), ValueError, r"target \(0, -7\) is outside"),
        ([(1, 1), (-3, 1)], ValueError, "target names a node twice"),
        ([], ValueError, "target is empty"),
        (3, TypeError, "target must be a node"),
        ((1, 2, 3), TypeError, "target must be a node"),
        ((1, 2.0), TypeError, "target must be a node"),
        ("ab", TypeError, "target must be a node"),
    ],
)
def test_targets_that_are_no_nodes(random_graph, target, error, message):
    graph = random_graph(0)
    for ask in (graph.influence, graph.ancestors, graph.trim, lambda t: graph.paths(1, t)):
        with pytest.raises(error, match=message):
            ask(target)


def test_no_relevance_in_the_last_layer(random_graph):
    graph = random_graph(0)
    graph.nodes[-1] = 0
    with pytest.raises(
        ValueError, match=r"no node of the last layer holds relevance: name a target=\(layer, position\)"
    ):
        graph.influence()
    torch.testing.assert_close(graph.influence((3, 5)).max(), graph.influence([(3, 5)]).max())


def test_masks_that_do_not_fit(random_graph):
    graph = random_graph(0)
    for mask in (torch.ones(4, 6), torch.ones(3, 6, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"nodes must be a bool mask \(4, 6\)"):
            graph.subgraph(mask)


@pytest.fixture
def large():
    """30,000 tokens, 1 million edges: enough for the work to be shared out."""
    rng, tokens, k, transitions = np.random.default_rng(0), 30_000, 12, []
    for _ in range(3):
        columns = np.sort(rng.integers(0, tokens, (tokens, k)), 1)
        fresh = np.diff(columns, prepend=-1) > 0
        edges = Edges(
            torch.arange(tokens).int(),
            torch.from_numpy(np.append(0, fresh.sum(1).cumsum())),
            torch.from_numpy(columns[fresh]).int(),
            torch.from_numpy(rng.standard_normal(int(fresh.sum()))).float(),
        )
        transitions.append((edges, torch.zeros(tokens, 2)))
    nodes, self_edges = (torch.from_numpy(rng.standard_normal((layers, tokens))).float() for layers in (4, 3))
    return Graph.from_transitions(nodes, self_edges, transitions, causal=False)


def everything(graph):
    """The bytes of what every algorithm answers."""
    for one in (
        graph,
        graph.prune(mass=0.5),
        graph.prune(influence=(0.5, 0.6)),
        graph.group_by(np.arange(graph.num_tokens) % 100),
        graph.difference(graph.prune(threshold=1.0)),
        graph.trim((2, 7)),
    ):
        for tensor in (one.influence((3, 5)), one.influence((3, 5), True), one.dropped_mass, one.dropped_self):
            yield tensor.numpy().tobytes()
        for tensor in (one.indptr, one.columns, one.weights, one.ancestors((3, 5)), one.descendants((1, 5))):
            yield tensor.numpy().tobytes()
    yield repr(graph.paths(20)).encode()


def test_the_number_of_threads_changes_nothing(large):
    try:
        openmp = ctypes.CDLL("libgomp.so.1")  # the one that the core is linked with
    except OSError:
        pytest.skip("the threads of this OpenMP cannot be counted from here")
    before, answers = openmp.omp_get_max_threads(), []
    try:
        for threads in (1, 2, 5):
            openmp.omp_set_num_threads(threads)
            answers.append(list(everything(large)))
    finally:
        openmp.omp_set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]


def test_the_core_releases_the_interpreter_lock(large):
    turns, stop = 0, False

    def spin():
        nonlocal turns
        while not stop:
            turns += 1
            time.sleep(0)  # gives the lock away

    other = threading.Thread(target=spin)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to give the lock away
    try:
        other.start()
        before = turns
        for _ in range(1000):  # one call may be over before the other thread wakes
            _native.check_graph(arrays(large))
            if turns > before:
                break
        after = turns
    finally:
        stop = True
        sys.setswitchinterval(interval)
        other.join()
    assert after > before
