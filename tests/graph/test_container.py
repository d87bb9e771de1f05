"""The arrays, and what they are refused for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import lrp_fast
from lrp_fast.graph import Edges, Graph


def test_the_shapes(graph):
    assert isinstance(graph, lrp_fast.Graph)
    assert graph.nodes.shape == (graph.num_layers + 1, graph.num_tokens)
    for layer in range(graph.num_layers):
        rows, indptr, columns, weights = graph.edges(layer)
        assert (rows.dtype, indptr.dtype, columns.dtype) == (torch.int32, torch.int64, torch.int32)
        assert weights.dtype == graph.nodes.dtype and indptr[0] == 0 and indptr[-1] == len(columns) == len(weights)
        assert graph.dropped(layer).shape == (len(rows), 2)


def test_dense_is_the_edges_and_the_self_edges(graph, matrices):
    for layer, matrix in enumerate(matrices(graph)):
        torch.testing.assert_close(graph.dense(layer), torch.tensor(matrix, dtype=graph.nodes.dtype))


def test_dense_leaves_the_self_edges_alone(random_graph):
    graph = random_graph(0)
    before = graph.self_edges.clone()
    graph.dense(0)
    assert torch.equal(graph.self_edges, before)


def test_entries_are_what_is_not_0_in_order(graph, matrices):
    for layer, matrix in enumerate(matrices(graph)):
        expected = [(j, i, w) for j, row in enumerate(matrix) for i, w in enumerate(row) if w != 0]
        targets, sources, weights = graph.entries(layer)
        assert list(zip(targets.tolist(), sources.tolist(), weights.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("columns", lambda t: t.index_fill(0, torch.tensor([2]), 6), "columns holds 6 at index 2, outside 0 to 5"),
        ("columns", lambda t: t.index_fill(0, torch.tensor([2]), -1), "columns holds -1 at index 2, outside 0 to 5"),
        ("columns", lambda t: t.flip(0), "columns must ascend within a row"),
        ("rows", lambda t: t.index_fill(0, torch.tensor([0]), 2**31 - 1), "rows holds 2147483647 at index 0"),
        ("rows", lambda t: t.flip(0), "rows must ascend within a transition"),
        ("indptr", lambda t: t - 1, "indptr must begin with 0, not -1"),
        ("indptr", lambda t: t * 2, "indptr must end with 39, what it counts, not 78"),
        ("indptr", lambda t: torch.cat([t[:3], t[2:-1] + 1000, t[-1:]])[: len(t)], "indptr must"),
        ("indptr", lambda t: t.index_fill(0, torch.tensor([4]), -(2**63)), "indptr must not descend"),
        ("row_offsets", lambda t: t.flip(0), "row_offsets must begin with 0"),
        ("row_offsets", lambda t: t.index_fill(0, torch.tensor([1]), 2**62), "row_offsets must not descend"),
        ("weights", lambda t: t.index_fill(0, torch.tensor([3]), float("nan")), "weights must be finite.* at index 3"),
        ("weights", lambda t: t[:-1].clone(), "weights must have size 39 in dimension 0, not 38"),
        ("self_edges", lambda t: t / 0, "self_edges must be finite"),
        ("self_edges", lambda t: t[:, :-1].clone(), r"self_edges must be \(3, 6\) for nodes \(4, 6\), not \(3, 5\)"),
        ("nodes", lambda t: t * float("inf"), "nodes must be finite"),
        ("nodes", lambda t: t[0].clone(), r"nodes must be \(L \+ 1, N\)"),
        ("dropped_mass", lambda t: -t, "dropped must hold a positive and a negative sum"),
        ("dropped_self", lambda t: t + 1, "dropped_self must hold a positive and a negative sum"),
        ("tokens", lambda t: t[1:], "tokens must be 6 strings, one a token, not 5"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(random_graph, name, change, message):
    graph = random_graph(2, tokens=6, density=0.9)
    with pytest.raises(ValueError, match=message):
        replace(graph, **{name: change(getattr(graph, name))})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("columns", lambda t: t.long(), "columns must be torch.int32, not torch.int64"),
        ("weights", lambda t: t.double(), "weights must be torch.float32, not torch.float64"),
        ("nodes", lambda t: t.half(), "nodes must be float32 or float64, not torch.float16"),
        ("nodes", lambda t: t.numpy(), "nodes must be a tensor, not ndarray"),
        ("tokens", lambda t: [1] * 6, "tokens must be a list of strings"),
        ("manifest", lambda t: None, "manifest must be a dict"),
    ],
)
def test_arrays_of_other_kinds_are_refused(random_graph, name, change, message):
    graph = random_graph(2)
    with pytest.raises(TypeError, match=message):
        replace(graph, **{name: change(getattr(graph, name))})


def test_arrays_that_cannot_be_handed_over_are_refused(random_graph):
    graph = random_graph(2)
    for weights in (graph.weights.repeat_interleave(2)[::2], graph.weights.requires_grad_(), graph.weights.to("meta")):
        with pytest.raises(ValueError, match="weights must be contiguous, on the CPU and without grad: pass weights"):
            replace(graph, weights=weights)


def test_an_index_written_later_is_caught_as_well(random_graph):
    graph = random_graph(2)
    graph.columns[3] = 10**9
    for ask in (
        graph.influence,
        graph.paths,
        graph.ancestors,
        graph.trim,
        lambda: graph.prune(mass=0.5),
        graph.measures,
    ):
        with pytest.raises(ValueError, match="columns holds 1000000000 at index 3"):
            ask()


def test_a_layer_that_is_not_there(random_graph):
    graph = random_graph(2)
    for ask in (graph.edges, graph.dense, graph.dropped, graph.entries):
        for layer in (-1, 3):
            with pytest.raises(ValueError, match=f"there is no transition {layer}: they are numbered 0 to 2"):
                ask(layer)
        with pytest.raises(TypeError, match="layer must be a whole number"):
            ask(1.0)


def test_transitions_that_do_not_count_are_refused():
    edges = Edges(torch.tensor([0]).int(), torch.tensor([0, 2]), torch.tensor([0]).int(), torch.ones(1))
    with pytest.raises(ValueError, match="indptr of transition 0 does not count its rows and columns"):
        Graph.from_transitions(torch.ones(2, 1), torch.ones(1, 1), [(edges, torch.zeros(1, 2))])
    with pytest.raises(ValueError, match="transitions is empty"):
        Graph.from_transitions(torch.ones(2, 1), torch.ones(1, 1), [])


def test_nothing_is_copied_on_the_way_to_the_core(random_graph):
    from lrp_fast.graph.native import arrays

    graph = random_graph(2)
    for array, tensor in zip(arrays(graph)[3:5], (graph.columns, graph.weights), strict=True):
        assert isinstance(array, np.ndarray) and array.ctypes.data == tensor.data_ptr()
