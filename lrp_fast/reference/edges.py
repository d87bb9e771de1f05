"""Edges between positions through one attention: one backward pass for each query, which is what they mean."""

from __future__ import annotations

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
