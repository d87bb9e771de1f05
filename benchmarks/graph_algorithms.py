"""The graph core on a large synthetic graph, next to scipy.sparse in the same run where scipy is installed.

    python benchmarks/graph_algorithms.py [--tokens 100000 --layers 32 --topk 16] [--out graph_algorithms.json]

Every target keeps topk sources: its own position and others behind it, near ones more often. scipy gets matrices whose
shares are computed beforehand, untimed, and multiplies; ours computes the shares from the weights as it goes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from run import HERE, provenance

from lrp_fast.graph import Edges, Graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--topk", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/graph_algorithms.json)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # only make the graph: a process of its own
    options = parser.parse_args()
    if options.write:
        synthetic(options.tokens, options.layers, options.topk).save(options.write)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.safetensors"
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--write", path], check=True)
        results = measure(path, options.repeats)
    report = {"benchmark": "graph_algorithms", **provenance(), "results": results}
    out = options.out or HERE / "results" / "graph_algorithms.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{results['edges']:,} edges, {results['file_bytes_per_edge']:.2f} bytes an edge on disk")
    print(f"peak memory above the file: {results['peak_above_file_mb']:.0f} MB")
    for name, seconds in results["median_s"].items():
        print(f"{name:28}{seconds:9.3f} s")
    for name, ratio in results["ratio_to_scipy"].items():
        print(f"{name:28}{ratio:9.2f} x scipy")
    print(f"\nwrote {os.path.relpath(out)}")


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


def measure(path: Path, repeats: int) -> dict:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Graph.load(path)  # from here on the file is in the page cache
    graph = Graph.load(path)
    last = (graph.num_layers, graph.num_tokens - 1)
    cases = {
        "load": lambda: Graph.load(path),
        "influence": lambda: graph.influence(),  # on all nodes of the last layer, so that no row is skipped
        "influence_signed": lambda: graph.influence(signed=True),
        "influence_one_target": lambda: graph.influence(last),
        "best_path": lambda: graph.paths(1, last),
        "best_100_paths": lambda: graph.paths(100, last),
        "prune_threshold": lambda: graph.prune(threshold=1.0),
        "prune_mass_0.9": lambda: graph.prune(mass=0.9),
        "prune_influence": lambda: graph.prune(influence=(0.8, 0.98), target=last),
        "trim": lambda: graph.trim(last),
    }
    seconds = {name: timed(fn, repeats) for name, fn in cases.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pruned = graph.prune(mass=0.5)
    groups = np.arange(graph.num_tokens) // 20
    slow = {
        "difference": lambda: graph.difference(pruned),
        "group_by_20_tokens": lambda: graph.group_by(groups),
        "measures": lambda: graph.measures(),
    }
    seconds |= {name: timed(fn, 1) for name, fn in slow.items()}
    scipy_version, scipy_seconds = None, {}
    if importlib.util.find_spec("scipy") is not None:
        scipy_version, scipy_seconds = scipy_sweeps(graph, last, repeats)
    medians = {name: statistics.median(times) for name, times in (seconds | scipy_seconds).items()}
    compared = {"influence": "scipy_influence", "best_path": "scipy_best_path"} if scipy_seconds else {}
    return {
        "tokens": graph.num_tokens,
        "layers": graph.num_layers,
        "edges": len(graph.columns),
        "file_bytes_per_edge": path.stat().st_size / len(graph.columns),
        "peak_above_file_mb": (peak - before) / 1024 - path.stat().st_size / 2**20,
        "cpus": os.cpu_count(),
        "scipy": scipy_version,
        "median_s": medians,
        "all_s": seconds | scipy_seconds,
        "ratio_to_scipy": {ours: medians[ours] / medians[theirs] for ours, theirs in compared.items()},
    }


def timed(fn, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return times


def scipy_sweeps(graph: Graph, last: tuple[int, int], repeats: int) -> tuple[str, dict[str, list[float]]]:
    """The influence of every node, and the best path to ``last``, over matrices of shares; with the same answers."""
    import scipy
    from scipy.sparse import csr_array

    tokens, matrices = graph.num_tokens, []
    for layer in range(graph.num_layers):
        targets, sources, weights = (one.numpy() for one in graph.entries(layer))
        totals = np.bincount(targets, np.abs(weights), minlength=tokens)
        rows = graph.edges(layer).rows.numpy()
        totals[rows] += graph.dropped(layer).double().abs().sum(1).numpy()
        shares = (np.abs(weights) / totals[targets]).astype(np.float32)
        indptr = np.append(0, np.bincount(targets, minlength=tokens).cumsum()).astype(np.int32)
        matrices.append(csr_array((shares, sources, indptr), shape=(tokens, tokens)))

    start = graph.nodes[-1].double().abs().numpy()
    start /= start.sum()

    def influence() -> np.ndarray:
        arriving = start
        for matrix in reversed(matrices):
            arriving = arriving @ matrix
        return arriving

    def best_path() -> float:
        best = np.ones(tokens)
        for matrix in matrices:
            best = np.maximum.reduceat(best[matrix.indices] * matrix.data, matrix.indptr[:-1])
        return best[last[1]]

    np.testing.assert_allclose(influence(), graph.influence()[0].numpy(), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(best_path(), graph.paths(1, last)[0].share, rtol=1e-4)
    sweeps = {"scipy_influence": influence, "scipy_best_path": best_path}
    return scipy.__version__, {name: timed(fn, repeats) for name, fn in sweeps.items()}


if __name__ == "__main__":
    main()
