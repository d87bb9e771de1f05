"""How wide the parts of a decoder layer are: what memory and work are reckoned from, without running anything."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from . import handlers
from .families import decoder_layers, handler_of


class LayerSize(NamedTuple):
    """Features a token of one decoder layer, and where the layer lives."""

    device: torch.device
    hidden: int
    heads: int
    query: int  # of all heads together
    key: int  # of all key/value heads together
    mlp: int  # of one of the MLP's inner tensors
    attention_weights: int  # elements of the linear maps outside of the MLP
    mlp_weights: int  # of those inside
    skipped_weights: int  # of these, the last map's, which a replayed layer does without
    window: int | None  # keys that a query reads; None for all


def layer_sizes(model: nn.Module) -> list[LayerSize]:
    """One entry a decoder layer, first to last. The model may be on the "meta" device."""
    return [_layer_size(model, layer) for layer in decoder_layers(model)]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def vocabulary_size(model: nn.Module) -> int:
    """How many logits a position has."""
    return model.get_output_embeddings().weight.shape[0]


def device_of(module: nn.Module) -> torch.device:
    """Where the module computes: accelerate keeps offloaded weights elsewhere in between."""
    for part in module.modules():
        device = getattr(part.__dict__.get("_hf_hook"), "execution_device", None)
        if device is not None:
            return torch.device(device if not isinstance(device, int) else f"cuda:{device}")
    return next(module.parameters()).device


def _layer_size(model: nn.Module, layer: nn.Module) -> LayerSize:
    (attention,) = (module for module in layer.modules() if handler_of(module) is handlers.attention)
    (mlp,) = (module for module in layer.modules() if handler_of(module) is handlers.gated_mlp)
    config = attention.config
    inside = sum(linear.weight.numel() for linear in mlp.modules() if isinstance(linear, nn.Linear))
    everything = sum(linear.weight.numel() for linear in layer.modules() if isinstance(linear, nn.Linear))
    return LayerSize(
        device=device_of(layer),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        query=config.num_attention_heads * attention.head_dim,
        key=config.num_key_value_heads * attention.head_dim,
        mlp=mlp.down_proj.weight.shape[1],
        attention_weights=everything - inside,
        mlp_weights=inside,
        skipped_weights=mlp.down_proj.weight.numel() if handler_of(layer) is handlers.decoder_layer else 0,
        window=getattr(attention, "sliding_window", getattr(config, "sliding_window", None)),
    )
