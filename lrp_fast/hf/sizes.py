"""How wide the parts of a decoder layer are: what memory and work are reckoned from, without running anything."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from . import experts, handlers, indexed, state_space
from .contributions import is_homogeneous
from .families import MIXTURES, branch_dtype, handled, handler_of, last_linear, mlps_among, splits
from .layers import decoder_layers
from .walk import modules_of, own_weights
from .weights import copies, device_of, is_offloaded, is_plain, nbytes, own_dtype, shape


class Choice(NamedTuple):
    """What an indexer chooses (see `indexed`)."""

    numbers: int  # for a token
    beyond: int  # tokens: of so many, all keys are read
    heads: int  # that score all keys; 0 where a layer before has chosen


class LayerSize(NamedTuple):
    """Features a token of one decoder layer, and where the layer lives."""

    device: torch.device
    hidden: int
    heads: int
    query: int  # of all heads together
    key: int  # of all key/value heads together
    mlp: int  # of one of the MLP's inner tensors
    whole: bool  # whether the MLP takes all tokens at once, however many there are
    attention_weights: int  # elements of the linear maps outside of the MLP
    mlp_weights: int  # of those inside
    skipped_weights: int  # of these, the last map's, which a replayed layer does without
    window: int | None  # keys that a query reads; None for all
    loaded: int  # bytes of weights that come to the device only while the layer runs
    unpacked: int  # bytes to make the largest matrix that is not kept in floats: its module does for each product
    plain: bool  # whether its keys and values are a linear map of its input, but for norms (see `contributions`)
    choice: Choice | None = None  # where its attention reads chosen keys alone


def layer_sizes(model: nn.Module) -> list[LayerSize]:
    """One entry a decoder layer, first to last. The model may be on the "meta" device."""
    config = model.config.get_text_config() if hasattr(model, "config") else None
    return [_layer_size(layer, config) for layer in decoder_layers(model)]


def head_dims(model: nn.Module) -> tuple[int, ...]:
    """Features of a head in the model's attentions, ascending, each once. The model may be on the "meta" device."""
    attention = [module for module in modules_of(model) if handler_of(module) in handlers.ATTENTIONS]
    config = model.config.get_text_config() if hasattr(model, "config") else None
    return tuple(sorted({_heads(module, config)[2] for module in attention}))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, shared ones once."""
    held = [(*module._parameters.values(), *module._buffers.values()) for module in modules_of(model)]
    tensors = {id(tensor): tensor for some in held for tensor in some if tensor is not None}
    return sum(map(nbytes, tensors.values()))


def _layer_size(layer: nn.Module, config) -> LayerSize:
    held = handled(layer)
    found = mlps_among(held)
    attention = [module for _, module, handler in held if handler in handlers.ATTENTIONS]
    mixtures = [_mixture(mlp) for mlp in found if handler_of(mlp) in MIXTURES]
    lasts = [last for mlp in found if (last := last_linear(mlp)) is not None]
    projections = {part for module in attention for part in modules_of(module)}
    linears = [module for _, module, handler in held if handler in handlers.LINEARS]
    outside = [linear for linear in linears if linear in projections]
    inside = [linear for linear in linears if linear not in projections]
    skips = handler_of(layer) is handlers.pre_norm_decoder_layer
    heads = [_heads(module, config) for module in attention]
    own = next((module.config for module in attention if hasattr(module, "config")), config)
    widths = [_inner(mlp) for mlp in found if handler_of(mlp) not in MIXTURES] + [width for width, _ in mixtures]
    carrying = [module for _, module, handler in held if handler in state_space.STATE_SPACES]
    whole = bool(carrying) or not (found and all(map(splits, found)))
    if not widths:  # spelt out in a class that was audited: it takes all tokens at once
        widths = [max(shape(linear)) for linear in inside]
    widths += [_carried(module, handler_of(module)) for module in carrying]
    return LayerSize(
        device=device_of(layer),
        hidden=own.hidden_size * getattr(own, "hc_mult", 1),  # as many residual streams
        heads=sum(queries for queries, _, _ in heads),
        query=sum(queries * features for queries, _, features in heads),
        key=sum(keys * features for _, keys, features in heads),
        mlp=max(widths, default=1),
        whole=whole,
        attention_weights=_elements(outside),
        mlp_weights=_elements(inside) + sum(elements for _, elements in mixtures),
        skipped_weights=_elements(lasts) if skips else 0,
        window=_window(attention) if attention else 1,
        loaded=sum(_loaded_bytes(module) for module in modules_of(layer)),
        unpacked=max((_unpacked_bytes(linear, layer) for linear in linears if not is_plain(linear)), default=0),
        plain=is_homogeneous(held),
        choice=next(filter(None, map(_choice, attention)), None),
    )


# The plan reckons with a gated MLP of two projections. Halves of one keep each other alive; without a gate, what the
# activation takes counts for more. Fitted, as the plan's own factors are.
_MORE = {
    handlers.fused_gated_mlp: 1.4, handlers.mlp: 1.5, handlers.falcon_mlp: 1.5, handlers.gpt2_mlp: 1.2,
    experts.clamped_mlp: 1.8,
}  # fmt: skip


def _inner(mlp: nn.Module) -> int:
    return int(_MORE.get(handler_of(mlp), 1) * shape(last_linear(mlp))[1])


def _carried(module: nn.Module, handler: handlers.Handler) -> int:
    """Of a layer that carries a state, features a token of what autograd keeps of it, as a fourth of an MLP's five."""
    if handler is state_space.gated_delta_net:
        features = module.num_v_heads * (3 * 64 + 8 * (module.head_k_dim + module.head_v_dim))
    elif handler is state_space.short_convolution:
        features = 4 * shape(module.in_proj)[0]
    elif hasattr(module, "num_heads"):  # Mamba 2, in chunks
        features = module.num_heads * (3 * module.chunk_size + 4 * module.ssm_state_size) + 4 * module.intermediate_size
    else:
        features = 4 * module.intermediate_size * module.ssm_state_size
    return features // 4


def _mixture(mlp: nn.Module) -> tuple[int, int]:
    """Of a mixture of experts, the inner features of a token, over all of its experts, and the weights that they take.

    What an expert reads and puts out exists once for each token that it serves too, and counts as an inner feature.
    """
    (router,) = (part for part in modules_of(mlp) if handler_of(part) in experts.ROUTERS)
    each = [weight[0].numel() for part in modules_of(mlp) for _, weight in own_weights(part) if weight.ndim == 3]
    scores = [weight for part in modules_of(router) for _, weight in own_weights(part) if weight.ndim == 2]
    mixed = [part for part in modules_of(mlp) if handler_of(part) in experts.EXPERTS and hasattr(part, "hidden_dim")]
    hidden = mixed[0].hidden_dim if mixed else scores[0].shape[1]
    inner = min(each) // hidden  # of the last
    shared = [shape(part.down_proj)[1] for part in modules_of(mlp) if handler_of(part) is handlers.gated_mlp]
    return router.top_k * (inner + hidden) + sum(shared), router.top_k * sum(each) + sum(map(torch.numel, scores))


def _elements(linears: list[nn.Module]) -> int:
    return sum(math.prod(shape(linear)) for linear in linears)


def _unpacked_bytes(linear: nn.Module, layer: nn.Module) -> int:
    dtype = own_dtype(linear) or branch_dtype(layer)
    return copies(linear) * math.prod(shape(linear)) * max(4, dtype.itemsize)


def _heads(attention: nn.Module, config) -> tuple[int, int, int]:
    """Heads, key/value heads, and features of each, as the families write them; ``config`` is the model's."""
    config = getattr(attention, "config", config)
    queries = config.num_attention_heads
    features = getattr(attention, "qk_head_dim", None) or getattr(attention, "head_dim", None)
    features = features or config.hidden_size // queries
    keys = getattr(attention, "num_kv_heads", None) or queries // getattr(attention, "num_key_value_groups", 1)
    return queries, keys, features


def _choice(attention: nn.Module) -> Choice | None:
    if handler_of(attention) is not handlers.indexed_attention:
        return None
    one, config = attention.indexer, attention.config
    if one is None:
        return Choice(config.index_topk, config.index_topk, 0) if getattr(attention, "skip_topk", False) else None
    if handler_of(one) is indexed.block_indexer:
        blocks = one.topk_blocks
        return Choice(blocks * config.num_key_value_heads, blocks * one.block_size, one.num_heads)
    return Choice(one.index_topk, one.index_topk, one.n_heads)


def _window(attention: list[nn.Module]) -> int | None:
    configs = (getattr(one, "config", None) for one in attention)
    of_configs = [getattr(config, "sliding_window", None) for config in configs]
    found = [getattr(one, "sliding_window", other) for one, other in zip(attention, of_configs, strict=True)]
    return None if None in found else max(found, default=None)


def _loaded_bytes(module: nn.Module) -> int:
    """Of the module's own weights, those that accelerate loads whenever it runs."""
    return sum(map(nbytes, module.parameters(recurse=False))) if is_offloaded(module) else 0
