"""Side routes: what decoder layers are given besides the hidden states, and that depends on them.

Zamba's layers are given the input embeddings, which its attentions read beside the hidden states. Gemma 4's smaller
models have two kinds of routes. Every layer is given some features that are made of the input embeddings before the
first layer, and of a table of their own (per-layer embeddings); and the last layers read keys and values that an
earlier layer made of its input, and have none of their own. `lrp_fast.sides` says what becomes of relevance there.
"""

from __future__ import annotations

from torch import nn

from ..ops.identity import share
from ..rules import Rules
from .overlay import Overlay, forward_name, forward_of, laid


def sided_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `decoder_layer`. The activation of a gate multiplies the per-layer embedding, if there is one: half to each
    (cp: to the embedding)."""
    if not getattr(module, "hidden_size_per_layer_input", 0):
        return {}
    own, shares = forward_of(module), rules.treatment

    def forward(hidden_states, per_layer_input=None, *rest, **named):
        whole = forward_of(module.act_fn)
        gate = (module.act_fn, forward_name(module.act_fn), lambda x: share(whole(x), shares.gate))
        with laid([gate]):
            return own(hidden_states, share(per_layer_input, shares.up), *rest, **named)

    return {"forward": forward}


def sharing_model(module: nn.Module, rules: Rules) -> Overlay:
    """As `leave`. All tokens pass through all layers, also those whose logits nobody wants through layers that make no
    keys."""
    return {"_maybe_slice_kv_shared_inputs": lambda *given, **named: given[:-1]}  # the last: how many logits to keep


def has_side_routes(layer: nn.Module) -> bool:
    """Whether a decoder layer is given embeddings, or the keys and values of another layer."""
    shares = getattr(getattr(layer, "self_attn", None), "is_kv_shared_layer", False)
    return bool(shares or getattr(layer, "hidden_size_per_layer_input", 0) or reads_embeddings(layer))


def reads_embeddings(layer: nn.Module) -> bool:
    """Whether a decoder layer is given the input embeddings themselves: Zamba's or Zamba 2's."""
    return "shared_transf" in layer._modules or "shared_transformer" in layer._modules


def side_features(layer: nn.Module, key: int) -> int:
    """Features a token of what a decoder layer is given, or makes for others; its keys have ``key``."""
    made = getattr(getattr(layer, "self_attn", None), "store_full_length_kv", False)
    return (getattr(layer, "hidden_size_per_layer_input", 0) or 0) + (2 * key if made else 0)
