"""GIT's decoder (arXiv 2205.14100), given text alone: the image encoder in front of it rests."""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType

from torch import nn

from ..rules import Rules
from .attention import attention_forward


def captioning_model(module: nn.Module, rules: Rules) -> dict[str, object]:
    """Tokens of images read each other in both directions. Where there are none, its mask is a causal one, and is asked
    for as such: the module gets a copy of its code that does."""
    own = inspect.unwrap(type(module).forward)
    make = own.__globals__["create_causal_mask"]

    def causal(*, block_sequence_ids, **given):
        return make(**given)

    code = FunctionType(
        own.__code__, own.__globals__ | {"create_causal_mask": causal}, own.__name__, own.__defaults__, own.__closure__
    )
    code.__kwdefaults__ = own.__kwdefaults__
    forward = MethodType(code, module)

    name, read = type(module).__name__, inspect.signature(own)

    def text_alone(*given, **named):
        told = read.bind(module, *given, **named).arguments
        if told.get("pixel_values") is not None:
            raise ValueError(f"{name} is given pixel_values, and lrp_fast has no rule for images: give text alone")
        cache = told.get("past_key_values", told.get("cache"))
        if told.get("attention_mask") is not None and cache is not None and cache.get_seq_length():
            raise ValueError(f"{name} takes what is in a cache for an image behind a mask: leave attention_mask out")
        return forward(*given, **named)

    return {"forward": text_alone}


def captioning_attention(module: nn.Module, rules: Rules) -> dict[str, object]:
    """BERT's, which goes past transformers' interface."""

    def forward(hidden_states, attention_mask=None, cache=None, **named):
        shape = (*hidden_states.shape[:-1], -1, module.attention_head_size)
        query, key, value = (
            one(hidden_states).view(shape).transpose(1, 2) for one in (module.query, module.key, module.value)
        )
        if cache is not None:
            key, value = cache.update(key, value, module.layer_idx)
        out, _ = attention_forward(module, query, key, value, attention_mask, **named)
        return out.flatten(2), None

    return {"forward": forward, "lrp_fast_rules": rules}
