"""The graph core on a synthetic graph of 47 million edges, next to scipy.sparse. Two threads, 4 minutes; 3 GB.

Every target keeps 16 sources: its own position and others behind it, near ones more often. scipy gets matrices whose
shares are computed beforehand, untimed, and multiplies; ours computes the shares from the weights as it goes.
"""

import numpy as np
import pytest
import torch
from turns import Reference

from lrp_fast.graph import Edges, Graph

scipy_sparse = pytest.importorskip("scipy.sparse")

TOKENS, LAYERS, TOPK = 100_000, 32, 16
CASES = {  # of the graph and its last node; what is to be compared with scipy's
    "influence": lambda graph, last: graph.influence()[0],
    "best path": lambda graph, last: [graph.paths(1, last)[0].share],
    "best 100 paths": lambda graph, last: graph.paths(100, last),
    "prune(threshold=1.0)": lambda graph, last: graph.prune(threshold=1.0),
    "prune(mass=0.9)": lambda graph, last: graph.prune(mass=0.9),
    "prune(influence=(0.8, 0.98))": lambda graph, last: graph.prune(influence=(0.8, 0.98), target=last),
    "trim": lambda graph, last: graph.trim(last),
    "measures": lambda graph, last: graph.measures(),
}
SCIPY = ("influence, scipy", "best path, scipy")
BOUND = 1e-4  # scipy's shares are float32


def pytest_generate_tests(metafunc):
    number = 2 if metafunc.config.getoption("--tiny") else 5
    given = [
        pytest.param(turn, case, id=f"{case}-turn{turn}")
        for turn in range(number)
        for case in (*CASES, *SCIPY)
        if turn == 0 or case != "measures"  # a second's call
    ]
    metafunc.parametrize(("turn", "case"), given)


@pytest.fixture(scope="module")
def graph(request):
    tiny = request.config.getoption("--tiny")
    return synthetic(*(1000, 4, TOPK) if tiny else (TOKENS, LAYERS, TOPK))


@pytest.fixture(scope="module")
def matrices(graph):
    """A matrix of shares a transition."""
    tokens, found = graph.num_tokens, []
    for layer in range(graph.num_layers):
        targets, sources, weights = (one.numpy() for one in graph.entries(layer))
        totals = np.bincount(targets, np.abs(weights), minlength=tokens)
        totals[graph.edges(layer).rows.numpy()] += graph.dropped(layer).double().abs().sum(1).numpy()
        shares = (np.abs(weights) / totals[targets]).astype(np.float32)
        indptr = np.append(0, np.bincount(targets, minlength=tokens).cumsum()).astype(np.int32)
        found.append(scipy_sparse.csr_array((shares, sources, indptr), shape=(tokens, tokens)))
    return found


def synthetic(tokens: int, layers: int, topk: int) -> Graph:
    rng = np.random.default_rng(0)
    positions = np.arange(tokens)[:, None]
    transitions = []
    for _ in range(layers):
        back = np.floor(rng.random((tokens, topk)) ** 4 * (positions + 1)).astype(np.int32)
        back[:, 0] = 0
        columns = np.sort(positions.astype(np.int32) - back, 1)
        fresh = np.diff(columns, prepend=-1) > 0  # short rows at the beginning, and some sources drawn twice
        weights = rng.standard_normal(int(fresh.sum()), np.float32) ** 3
        edges = Edges(
            torch.arange(tokens, dtype=torch.int32),
            torch.from_numpy(np.append(0, fresh.sum(1).cumsum())),
            torch.from_numpy(columns[fresh]),
            torch.from_numpy(weights),
        )
        lost = rng.random((tokens, 2), np.float32) * np.float32([1, -1])
        transitions.append((edges, torch.from_numpy(lost)))
    nodes, self_edges = (rng.standard_normal((n, tokens), np.float32) for n in (layers + 1, layers))
    return Graph.from_transitions(torch.from_numpy(nodes), torch.from_numpy(self_edges), transitions)


def test_graph_algorithms(timed, graph, matrices, turn, case):
    last = graph.num_layers, graph.num_tokens - 1

    start = graph.nodes[-1].double().abs().numpy()
    start /= start.sum()

    def influence():
        arriving = start
        for matrix in reversed(matrices):
            arriving = arriving @ matrix
        return arriving

    def best_path():
        best = np.ones(graph.num_tokens)
        for matrix in matrices:
            best = np.maximum.reduceat(best[matrix.indices] * matrix.data, matrix.indptr[:-1])
        return [best[last[1]]]

    call = {"influence, scipy": influence, "best path, scipy": best_path}.get(case) or (
        lambda: CASES[case](graph, last)
    )
    other = {name.removesuffix(", scipy"): name for name in SCIPY} | {
        name: name.removesuffix(", scipy") for name in SCIPY
    }
    held = Reference(other[case], BOUND) if case in other else None
    numbers = (lambda found: torch.as_tensor(found).tolist()) if held else None
    timed(f"graph algorithms, {len(graph.columns):,} edges", case, call, against=held, numbers=numbers)
