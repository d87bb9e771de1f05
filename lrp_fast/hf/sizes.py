"""How wide the parts of a decoder layer are: what memory and work are reckoned from, without running anything."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from ..rules import Rules
from . import experts, handlers, indexed, state_space
from .contributions import is_homogeneous
from .directions import is_causal
from .families import MIXTURES, branch_dtype, handled, handler_of, handlers_of, last_linear, mlps_among, splits
from .layers import decoder_layers
from .owner import known
from .rotations import rotates
from .sides import reads_embeddings, side_features
from .spelt_out_attention import biases_scores, heads_with_biases
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
    scanned: int  # of what the edges of its scans are made of
    beside: int  # of what side routes bring it, or it sends along them: there all the time, with the gradients
    plain: bool  # whether its keys and values are a linear map of its input, but for norms (see `contributions`)
    choice: Choice | None = None  # where its attention reads chosen keys alone
    rotates: bool = False  # whether `ops.rotary` turns its queries and keys (see `rotations`)
    causal: bool = True  # whether no query reads a later key; where it does, a window counts those on both sides


def layer_sizes(model: nn.Module) -> list[LayerSize]:
    """One entry a decoder layer, first to last. The model may be on the "meta" device."""
    return known(model, _layer_sizes)


def _layer_sizes(model: nn.Module) -> list[LayerSize]:
    config = model.config.get_text_config() if hasattr(model, "config") else None
    layers = decoder_layers(model)
    parts = [modules_of(layer) for layer in layers]
    coming = iter(handlers_of([one for some in parts for one in some]))
    alike: dict[tuple, LayerSize] = {}  # of this call alone: whatever changes between calls is seen
    sizes = []
    for layer, some in zip(layers, parts, strict=True):
        look = _look([(part, next(coming)) for part in some])
        if look not in alike:
            alike[look] = _layer_size(layer, config)
        sizes.append(alike[look])
    first = next((place for place, layer in enumerate(layers) if reads_embeddings(layer)), None)
    if first is not None:  # they are the same for all
        sizes[first] = sizes[first]._replace(beside=sizes[first].hidden)
    return sizes


def _look(parts: list[tuple[nn.Module, handlers.Handler | None]]) -> tuple:
    """All that a layer's size can come from, of its modules and their handlers: equal for layers that differ in the
    numbers in their weights and in their place alone.

    What is no number, string or plain tensor stands for itself, so that no other layer has its equal.
    """
    place = {part: i for i, (part, _) in enumerate(parts)}
    found: list = []
    for part, handler in parts:
        found += [type(part), handler, _reach(part) if handler in handlers.ATTENTIONS else None]
        found += [(name, None if one is None else place[one]) for name, one in part._modules.items()]
        found += [(name, _kind_of(one)) for name, one in (*part._parameters.items(), *part._buffers.items())]
        for name, held in part.__dict__.items():
            if name not in _OF_ALL:
                found += [name, held if type(held) in _NUMBERS else id(held)]
    return tuple(found)


# What any module has: hooks, of which no size comes. And a layer's number, which `_reach` alone reads.
_OF_ALL = {*nn.Module().__dict__, "layer_idx"}
_NUMBERS = (int, float, bool, str, type(None), torch.dtype)


def _kind_of(tensor: torch.Tensor | None) -> object:
    if type(tensor) not in (nn.Parameter, torch.Tensor):
        return id(tensor)
    return type(tensor), tensor.shape, tensor.dtype, tensor.device


def head_dims(model: nn.Module) -> tuple[int, ...]:
    """Features of a head in the model's attentions, ascending, each once. The model may be on the "meta" device."""
    attention = [module for module in modules_of(model) if handler_of(module) in handlers.ATTENTIONS]
    config = model.config.get_text_config() if hasattr(model, "config") else None
    return tuple(sorted({_heads(module, config)[2] for module in attention}))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, shared ones once."""
    return known(model, _weight_bytes)


def _weight_bytes(model: nn.Module) -> int:
    held = [(*module._parameters.values(), *module._buffers.values()) for module in modules_of(model)]
    tensors = {id(tensor): tensor for some in held for tensor in some if tensor is not None}
    return sum(map(nbytes, tensors.values()))


def _layer_size(layer: nn.Module, config) -> LayerSize:
    held = handled(layer)
    found = mlps_among(held)
    attention = [module for _, module, handler in held if handler in handlers.ATTENTIONS]
    mixtures = [_mixture(handled(mlp)) for mlp in found if handler_of(mlp) in MIXTURES]
    beside = not mixtures and any(handler in experts.EXPERTS for _, _, handler in held)  # called by the layer (Gemma 4)
    mixtures += [_mixture([part for part in held if part[1] not in found])] if beside else []
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
    whole = bool(carrying) or beside or not (found and all(map(splits, found)))
    if not widths:  # spelt out in a class that was audited: it takes all tokens at once
        widths = [max(shape(linear)) for linear in inside]
    widths += [_carried(module, handler_of(module)) for module in carrying]
    return LayerSize(
        device=device_of(layer),
        hidden=own.hidden_size * getattr(own, "hc_mult", getattr(own, "altup_num_inputs", 1)),  # as many streams
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
        scanned=sum(_scanned(module, handler_of(module)) for module in carrying),
        beside=side_features(layer, sum(keys * features for _, keys, features in heads)),
        plain=is_homogeneous(held),
        choice=next(filter(None, map(_choice, attention)), None),
        rotates=bool(attention) and all(handler_of(one) in _ROTATING and rotates(one) for one in attention),
        causal=all(map(is_causal, attention)),
    )


_ROTATING = (handlers.attention, handlers.capped_attention)  # that lay `rotating` over their modules
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
        if hasattr(module, "forget_gate"):  # Kimi's: a decay for each channel
            features = module.num_heads * (3 * 64 + 24 * module.head_dim)
        else:
            features = module.num_v_heads * (3 * 64 + 8 * (module.head_k_dim + module.head_v_dim))
    elif handler is state_space.lightning_attention:
        features = module.num_attention_heads * (2 * module.block_size + 8 * module.head_dim)
    elif handler is state_space.recurrent_block:
        features = 20 * module.lru_width
    elif handler is state_space.time_mixing:
        features = 32 * module.attention_hidden_size
    elif handler is state_space.channel_mixing:
        features = 4 * (shape(module.key)[0] + shape(module.key)[1])
    elif handler is state_space.matrix_memory:
        features = 4 * 64 * module.config.num_heads + 14 * (module.config.qk_dim + module.config.v_dim)
    elif handler is state_space.short_convolution:
        features = 4 * shape(module.in_proj)[0]
    elif hasattr(module, "num_heads"):  # Mamba 2, in chunks
        features = module.num_heads * (3 * module.chunk_size + 4 * module.ssm_state_size) + 4 * module.intermediate_size
    else:
        features = 4 * module.intermediate_size * module.ssm_state_size
    return features // 4


def _scanned(module: nn.Module, handler: handlers.Handler) -> int:
    """Of a layer that carries a state, features a token of its trace and of what its input contributes, from as many
    positions as its convolution reads; of a delta rule, of what follows both through its chunks besides. 0 where no
    closed form of its edges is known."""
    if state_space.without_edges(module, handler, Rules("attnlrp")) is not None:
        return 0
    lags = state_space.reach_of(module)
    if handler is state_space.gated_delta_net:
        key, value = module.head_k_dim, module.head_v_dim
        chunks = (1 + lags) * (64 + key) + 3 * 64 + (2 + lags) * value + key * value // 64
        return module.num_v_heads * ((3 + 2 * lags) * (2 * key + value) + chunks)
    if handler is state_space.short_convolution:
        return 5 * shape(module.in_proj)[0] // 3
    if handler is state_space.lightning_attention:
        return 11 * module.num_attention_heads * module.head_dim
    if handler is state_space.matrix_memory:
        return 5 * (2 * module.config.qk_dim + module.config.v_dim)
    if handler is state_space.recurrent_block:
        return (5 + 2 * lags) * module.lru_width
    return (4 + 2 * lags) * module.intermediate_size + 4 * module.ssm_state_size


def _mixture(held: list) -> tuple[int, int]:
    """Of a mixture of experts, by what `handled` finds in it, the inner features of a token, over all of its experts,
    and the weights that they take.

    What an expert reads and puts out exists once for each token that it serves too, and counts as an inner feature.
    """
    (router,) = (part for _, part, handler in held if handler in experts.ROUTERS)
    each = [weight[0].numel() for _, part, _ in held for _, weight in own_weights(part) if weight.ndim == 3]
    stacked = [part for _, part, handler in held if handler is experts.stacked_experts]
    each += [weight.numel() // part.num_experts for part in stacked for _, weight in own_weights(part.mlp)]
    scores = [weight for part in modules_of(router) for _, weight in own_weights(part) if weight.ndim == 2]
    mixed = [part for _, part, handler in held if handler in experts.EXPERTS and hasattr(part, "hidden_dim")]
    hidden = mixed[0].hidden_dim if mixed else scores[0].shape[1]
    inner = min(each) // hidden  # of the last
    shared = [_inner(part) for part in mlps_among([one for one in held if one[2] not in MIXTURES])]
    chosen = next((part.top_k for _, part, _ in held if hasattr(part, "top_k")), None) or router.config.top_k_experts
    return chosen * (inner + hidden) + sum(shared), chosen * sum(each) + sum(map(torch.numel, scores))


def _elements(linears: list[nn.Module]) -> int:
    return sum(math.prod(shape(linear)) for linear in linears)


def _unpacked_bytes(linear: nn.Module, layer: nn.Module) -> int:
    dtype = own_dtype(linear) or branch_dtype(layer)
    return copies(linear) * math.prod(shape(linear)) * max(4, dtype.itemsize)


def _heads(attention: nn.Module, config) -> tuple[int, int, int]:
    """Heads, key/value heads, and features of each, as the families write them; ``config`` is the model's."""
    if biases_scores(attention, handler := handler_of(attention)):
        return heads_with_biases(attention, handler)
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
    found = [_reach(one) for one in attention]
    return None if None in found else max(found, default=None)


def _reach(attention: nn.Module) -> int | None:
    config, place = (getattr(attention, name, None) for name in ("config", "layer_idx"))
    kinds = getattr(config, "layer_types", None) or []
    if place is not None and kinds[place : place + 1] == ["chunked_attention"]:
        return config.attention_chunk_size
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    return window if window is None or is_causal(attention) else 2 * window - 1


def _loaded_bytes(module: nn.Module) -> int:
    """Of the module's own weights, those that accelerate loads whenever it runs."""
    return sum(map(nbytes, module.parameters(recurse=False))) if is_offloaded(module) else 0
