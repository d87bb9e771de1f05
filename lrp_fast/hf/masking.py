"""Handlers of models whose attentions would not get `attention.mask_bounds` if transformers had its way."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

from torch import nn

from ..rules import Rules
from .attention import NO_MATRICES, OF_TEXT, PADDING, mask_bounds
from .overlay import Overlay, forward_of, laid


def masking_model(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.leave`; in older releases of transformers, a model that makes a mask of N x N by itself."""

    def bounds(attention_mask, input_tensor, cache_position, past_key_values, *_):
        if attention_mask is not None and attention_mask.ndim != 2:
            return attention_mask  # refused by the attention
        start, length = cache_position[0].item(), len(cache_position)
        cached = past_key_values is not None
        keys, offset = past_key_values.get_mask_sizes(cache_position, 0) if cached else (length, 0)
        sizes = {"q_offset": start, "q_length": length, "kv_offset": offset, "kv_length": keys}
        return mask_bounds(len(input_tensor), attention_mask, **sizes)

    return {"_update_causal_mask": bounds} if hasattr(module, "_update_causal_mask") else {}


def padding_model(module: nn.Module, rules: Rules) -> Overlay:
    """MPT's, which casts the mask that transformers makes to bool, and so wants one: `attention.padding_mask`. It asks
    its attentions for their weights without telling them."""

    def refuse(named):
        if named.get("output_attentions") or module.config.output_attentions:
            raise ValueError(NO_MATRICES)

    return {"forward": _masked_by(PADDING, module, refuse)}


def captioning_model(module: nn.Module, rules: Rules) -> Overlay:
    """GIT's, in whose mask images are blocks: `attention.text_bounds`. Its image encoder does not run."""

    def refuse(named):
        if named.get("position_ids") is not None:
            raise ValueError(
                f"{type(module).__name__} is given position_ids, of which lrp_fast cannot see whether they are those "
                "of one text: leave them out"
            )

    return {"forward": _masked_by(OF_TEXT, module, refuse)}


def text_model(module: nn.Module, rules: Rules) -> Overlay:
    """Falcon's of transformers 5.2 to 5.14, which has its causal mask spelt out by asking for a custom one that hides
    nothing more: `attention.text_bounds`."""
    return {"forward": _masked_by(OF_TEXT, module, lambda named: None)}


def _masked_by(name: str, module: nn.Module, refuse: Callable[[Overlay], None]) -> Callable:
    """The model's own forward pass, with another of our masks than all others get."""
    own = forward_of(module)

    @functools.wraps(own)
    def forward(*args, **named):
        refuse(named)
        config = copy.deepcopy(module.config)
        config._attn_implementation = name
        with laid([(module, "config", config)]):
            return own(*args, **named)

    return forward
