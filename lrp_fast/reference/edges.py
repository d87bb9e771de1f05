"""Edges between positions through one attention or scan: one backward pass for each query, which is what they mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import attention_backward


def attention_edges(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, key_part: Tensor, value_part: Tensor, **given
) -> Tensor:
    """(B, T, S): relevance that query t of the output passes to position s through keys and values, all heads summed.

    ``key_part`` and ``value_part``, shaped as key and value, are what the layer's input contributes to them: relevance
    is that times the relevance gradient. Without biases and stabilisers they are key and value themselves. ``given``:
    scale, rule, softcap, sinks, epsilon and gamma, as in `attention_backward`.
    """
    edges = []
    for t in range(query.shape[2]):
        only = torch.zeros_like(g)
        only[:, :, t] = g[:, :, t]
        _, g_key, g_value = attention_backward(only, query, key, value, mask, **given)
        edges.append((g_key * key_part + g_value * value_part).sum((1, 3)))
    return torch.stack(edges, 1)


def scan_edges(
    backward: Callable[[Tensor], tuple[Tensor | None, ...]], g: Tensor, parts: tuple[Tensor | None, ...]
) -> Tensor:
    """(T, T): relevance that token t of a scan's output passes to position s of the layer's input.

    Args:
        backward: from the relevance gradient at the output, shaped as ``g`` (1, T, ...), those of all that is mixed.
        parts: for each of these (lags, 1, T, ...), what the input so many positions before contributes to it; or None.
    """
    edges = g.new_zeros(g.shape[1], g.shape[1])
    for t in range(g.shape[1]):
        only = torch.zeros_like(g)
        only[:, t] = g[:, t]
        for found, part in zip(backward(only), parts, strict=True):
            for lag, of_lag in enumerate(() if part is None else part):
                edges[t, : g.shape[1] - lag] += (found * of_lag)[0].flatten(1).sum(-1)[lag:]
    return edges
