"""Whether the model moves as a graph says when what it names is cut.

The graph is that of `lrp_fast.attribute` by the method's ``rules`` (16 edges into each target); a method without rules
has none, and is refused. Cut one by one, in the running model, by `lrp_fast.ablate`:

- the 5 nodes (layer, position) of largest |relevance| in layers 1 to L - 1, the last position apart, through which all
  goes: each is replaced by the mean of its layer's nodes over the prompt;
- the 5 edges of largest |weight| from one position to a later one: the target's query does without the source's key
  and value in that layer, and its other attention weights grow to a sum of 1.

Each is compared with one drawn at random of the same class: for a node another position of the same layer, for an edge
another source of the same layer and target (both by the case's name and the seed). ``nodes_moved`` and
``nodes_random`` are the mean |change| of the value that is explained, ``nodes_gain`` the first minus the second,
``nodes_sign`` the share of the named ones whose change has the sign that the graph says: the value falls without what
has positive relevance. The same for edges. A model of one layer has no nodes between: NaN. Scores of tokens play no
part in it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..scene import Scene

BETTER = {"edges_gain": "higher", "nodes_gain": "higher", "edges_sign": "higher", "nodes_sign": "higher"}

COUNT = 5
PROMPTS = 4 * COUNT * 2 + 4  # two each time something is cut; and the pass that makes the graph takes about four

Part = tuple[int, ...]  # (layer, position) or (layer, source, target)


def graph_cuts(scores: Tensor, scene: Scene, count: int = COUNT) -> dict:
    """Raises ValueError for a method that has no rules, and for a prompt too short for edges to be compared."""
    if scene.rules is None:
        raise ValueError("the method has no rules, and so no graph: give one that has, or leave graph_cuts out")
    if scene.length < 4:
        raise ValueError(f"the prompt has {scene.length} tokens: 4 are needed to compare edges")
    key = ("graph_cuts", scene.rules, count)
    if key not in scene.kept:
        graph = scene.graph_by(scene.rules).graph
        nodes = _compared(scene, "nodes", "mean", best_nodes(graph, count))
        scene.kept[key] = nodes | _compared(scene, "edges", "zero", best_edges(graph, count))
    return dict(scene.kept[key])


def best_nodes(graph, count: int) -> list[tuple[Part, float]]:
    """The nodes that are cut, with their relevance, the largest first; of equal ones the lower layer and position."""
    between = graph.nodes[1:-1, :-1].double()
    order = between.abs().flatten().argsort(descending=True, stable=True)[:count].tolist()
    width = between.shape[1]
    return [((1 + one // width, one % width), float(between.flatten()[one])) for one in order]


def best_edges(graph, count: int) -> list[tuple[Part, float]]:
    """The edges that are cut, with their weights, as `best_nodes`; those whose targets have another source."""
    found = []
    for layer in range(graph.num_layers):
        edges = graph.edges(layer)
        targets = torch.as_tensor(edges.rows).repeat_interleave(torch.as_tensor(edges.indptr).diff()).tolist()
        sources, weights = torch.as_tensor(edges.columns).tolist(), torch.as_tensor(edges.weights).tolist()
        triples = zip(sources, targets, weights, strict=True)
        found += [((layer, source, target), weight) for source, target, weight in triples if source < target > 1]
    return sorted(found, key=lambda one: (-abs(one[1]), one[0]))[:count]


def _compared(scene: Scene, kind: str, how: str, named: list[tuple[Part, float]]) -> dict[str, float]:
    drawn = scene.drawn("graph_cuts", kind)
    moved, random, right = [], [], []
    for part, weight in named:
        change = scene.cut({kind: [part]}, how)
        moved.append(abs(change))
        right.append(change * weight < 0)
        random.append(abs(scene.cut({kind: [_other(part, scene.length, drawn)]}, how)))
    means = [float(np.mean(one)) if named else math.nan for one in (moved, random, right)]
    return dict(zip((f"{kind}_moved", f"{kind}_random", f"{kind}_sign"), means, strict=True)) | {
        f"{kind}_gain": means[0] - means[1]
    }


def _other(part: Part, length: int, drawn: np.random.Generator) -> Part:
    """Another of the same class."""
    layer, position, *target = part
    among = [one for one in range(target[0] if target else length - 1) if one != position]
    return (layer, int(drawn.choice(among)), *target)
