"""Which nodes a question is about: (T, 2) int64 arrays of layers and positions, in order."""

from __future__ import annotations

import operator

import numpy as np
import torch


def read(graph, nodes, name: str) -> np.ndarray:
    """A node (layer, position) or a sequence of them, each once and in range; negative numbers count from the end."""
    try:
        listed = list(nodes)
        if listed and not hasattr(listed[0], "__len__"):
            listed = [listed]
        pairs = [(operator.index(layer), operator.index(position)) for layer, position in listed]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a node (layer, position) or a list of such nodes, not {nodes!r}") from error
    if not pairs:
        raise ValueError(f"{name} is empty: name at least one node")
    layers, tokens = graph.num_layers + 1, graph.num_tokens
    for layer, position in pairs:
        if not (-layers <= layer < layers and -tokens <= position < tokens):
            raise ValueError(f"{name} ({layer}, {position}) is outside the graph's {layers} layers of {tokens} nodes")
    found = sorted((layer % layers, position % tokens) for layer, position in pairs)
    if len(set(found)) < len(found):
        raise ValueError(f"{name} names a node twice: {nodes!r}")
    return np.array(found, np.int64)


def targets(graph, target) -> np.ndarray:
    """The nodes of ``target``, or all that hold relevance in the last layer."""
    if target is not None:
        return read(graph, target, "target")
    positions = graph.nodes[-1].numpy().nonzero()[0]  # may be all there are: no list of tuples
    if not len(positions):
        raise ValueError("no node of the last layer holds relevance: name a target=(layer, position)")
    return np.stack([np.full_like(positions, graph.num_layers), positions], 1)


def named(target, found: np.ndarray) -> list[list[int]] | None:
    """What a manifest says of a ``target`` that stands for the nodes ``found``."""
    return None if target is None else found.tolist()


def shares(graph, found: np.ndarray, signed: bool = False) -> np.ndarray:
    """What each target counts: its relevance over the sum of |relevance|; equal parts where all of it is 0."""
    relevance = graph.nodes.numpy()[tuple(found.T)].astype(np.float64)
    total = np.abs(relevance).sum()
    if total == 0:
        return np.full(len(found), 1 / len(found))
    return (relevance if signed else np.abs(relevance)) / total


def start(graph, found: np.ndarray, signed: bool = False) -> np.ndarray:
    """(L + 1, N) float64, 0 but for the targets."""
    weights = np.zeros(tuple(graph.nodes.shape))
    weights[tuple(found.T)] = shares(graph, found, signed)
    return weights


def mask(graph, found: np.ndarray) -> np.ndarray:
    """(L + 1, N) bool, true at the nodes."""
    flags = np.zeros(tuple(graph.nodes.shape), bool)
    flags[tuple(found.T)] = True
    return flags


def inputs(graph) -> np.ndarray:
    """(L + 1, N) bool, true in layer 0."""
    flags = np.zeros(tuple(graph.nodes.shape), bool)
    flags[0] = True
    return flags


def read_mask(graph, nodes) -> np.ndarray:
    """An (L + 1, N) boolean tensor or array as an array."""
    flags = torch.as_tensor(nodes)
    if flags.dtype != torch.bool or flags.shape != graph.nodes.shape:
        raise ValueError(
            f"nodes must be a bool mask {tuple(graph.nodes.shape)}, not {flags.dtype} {tuple(flags.shape)}"
        )
    return flags.cpu().contiguous().numpy()
