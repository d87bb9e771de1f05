"""A graph as plain data and in words: counts before and after pruning, and its best paths."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from ..files import without_infinity
from ..graph import Graph, Path, measures
from ..graph.export import dropped
from ..graph.viewer import about
from .table import cut, headline, size

_COUNTS = {
    "nodes": "nodes with edges",
    "tokens": "tokens with nodes",
    "edges": "edges",
    "crossing": "of them between tokens",
    "mass": "sum of |weight|",
    "same_position_share": "at one position",
    "mean_lookback": "mean look-back",
    "dropped_positive": "dropped, positive",
    "dropped_negative": "dropped, negative",
}


def counts(graph: Graph) -> dict[str, float]:
    """What there is of a graph: numbers of nodes, tokens and edges, sums over edges.

    ``mass`` is the sum of |weight|, ``same_position_share`` the part of it on edges from a position to itself, and
    ``mean_lookback`` the mean distance between target and source, in tokens, weighted by |weight|.
    """
    held = np.zeros(tuple(graph.nodes.shape), bool)
    edges = crossing = 0
    mass = same = distance = 0.0
    for layer in range(graph.num_layers):
        targets, sources, weights = (one.numpy() for one in graph.entries(layer))
        held[layer, sources] = held[layer + 1, targets] = True
        magnitude, away = np.abs(weights), np.abs(targets - sources)
        edges += len(weights)
        crossing += int((away > 0).sum())
        mass += float(magnitude.sum())
        same += float(magnitude[away == 0].sum())
        distance += float((magnitude * away).sum())
    positive, negative = dropped(graph)
    return {
        "nodes": int(held.sum()),
        "tokens": int(held.any(0).sum()),
        "edges": edges,
        "crossing": crossing,
        "mass": mass,
        "same_position_share": same / mass if mass else 0.0,
        "mean_lookback": distance / mass if mass else 0.0,
        "dropped_positive": positive,
        "dropped_negative": negative,
    }


def as_json(whole: Graph, kept: Graph, paths: list[Path]) -> dict:
    """Counts of the graph before and after pruning, the best paths and the measures of what was kept."""
    return {
        "manifest": without_infinity(kept.manifest),
        "num_layers": kept.num_layers,
        "num_tokens": kept.num_tokens,
        "before": counts(whole),
        "kept": counts(kept),
        "paths": [
            {"share": path.share, "positions": list(path.positions)}
            | ({} if kept.tokens is None else {"tokens": [kept.tokens[i] for i in path.positions]})
            for path in paths
        ],
        "measures": measures.columns(kept),
    }


def table(whole: Graph, kept: Graph, paths: list[Path], pruned: str) -> str:
    """What was explained, what pruning left (``pruned`` says which), and the best paths. Ends without a newline."""
    lines = [*head(kept), ""]
    before, after = counts(whole), counts(kept)
    lines.append(f"{'':24}{'before':>12}{'kept':>12}   {pruned}".rstrip())
    for name, words in _COUNTS.items():
        share = f"   {100 * after[name] / before[name]:5.1f} %" if name in ("edges", "mass") and before[name] else ""
        lines.append(f"{words:24}{_figure(name, before[name]):>12}{_figure(name, after[name]):>12}{share}")
    if not after["edges"]:
        return "\n".join([*lines, "", "nothing is left: ask for larger shares with --prune, or for none"])
    if not paths:
        return "\n".join([*lines, "", "no path leads from an input token to what is explained"])
    lines += ["", " share  best paths: position, token and layers, from the input up"]
    return "\n".join([*lines, *(f"{100 * path.share:4.1f} %  {steps(kept, path)}" for path in paths)])


def head(graph: Graph) -> list[str]:
    """What was explained, of which model, by which rule, or that the graph does not say it."""
    found = about(graph)
    if found is None:
        return [f"A graph that does not say what was explained, {size(graph.num_layers, graph.num_tokens)}"]
    return headline(found, graph.num_layers, graph.num_tokens)


def _figure(name: str, value: float) -> str:
    if name == "same_position_share":
        return f"{100 * value:.1f} %"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if name == "mean_lookback" else f"{value:#.4g}"


def steps(graph: Graph, path: Path) -> str:
    """``9 ' blue' 0-11 > 28 ' the' 12-30``."""
    steps = []
    for position, layers in groupby(range(len(path.positions)), lambda layer: path.positions[layer]):
        first, *rest = layers
        text = "" if graph.tokens is None else f" {cut(repr(graph.tokens[position]), 20)}"
        steps.append(f"{position}{text} {f'{first}-{rest[-1]}' if rest else first}")
    return " > ".join(steps)
