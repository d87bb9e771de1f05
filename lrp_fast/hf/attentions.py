"""Handlers of attention, softmax(Q K^T) V, by the call of transformers' attention interface."""

from __future__ import annotations

import sys

from torch import nn

from ..rules import Rules
from .dynamic_mask import dynamic_mask_attention
from .functions import by_rule
from .glue import spelt_out
from .indexed import indexed_attention
from .overlay import Overlay, forward_of
from .rotations import rotating
from .spelt_out_attention import SPELT_OUT


def attention(module: nn.Module, rules: Rules) -> Overlay:
    """A module that goes through transformers' attention interface and holds projections and q/k norms besides."""
    return {**rotating(module), **_by_interface(module, rules)}


def _by_interface(attention: nn.Module, rules: Rules) -> Overlay:
    return {"lrp_fast_rules": rules, **_window_of_mask(attention)}


def _window_of_mask(attention: nn.Module) -> Overlay:
    """The window that a model makes its one mask with, as Mixtral does, where its attention knows of none (Phi-MoE's).
    """
    config, home = getattr(attention, "config", None), sys.modules[type(attention).__module__]
    window = getattr(config, "sliding_window", None)
    known = hasattr(attention, "sliding_window") or getattr(config, "layer_types", None) is not None
    if window is None or known or not hasattr(home, "create_sliding_window_causal_mask"):
        return {}
    return {"sliding_window": window}


def capped_attention(module: nn.Module, rules: Rules) -> Overlay:
    """As `attention`, with a soft-cap on its scores, which PyTorch's attention would leave out."""
    if module.attn_logit_softcapping is not None and module.config._attn_implementation == "sdpa":
        raise ValueError(
            f"{type(module).__name__} caps its scores, and the attention that the model runs with, sdpa, leaves that "
            'out: call model.set_attn_implementation("eager") first'
        )
    return attention(module, rules)


def gated_attention(module: nn.Module, rules: Rules) -> Overlay:
    """As `attention`, with a sigmoid's share of what each head reads, or clipped projections: `spelt_out`."""
    return {**spelt_out(module, rules), **_by_interface(module, rules)}


def mixture_of_attentions(module: nn.Module, rules: Rules) -> Overlay:
    """JetMoE's (arXiv 2404.07413): a router chooses, for each token, projections of queries and of what is read; keys
    and values are those of all. As `mixture` behind the attention, and in front of it the choice alone matters.

    ``experts`` holds the projections and the router, and is not called itself.
    """
    own = forward_of(module)

    def forward(*given, **named):
        with by_rule(module.experts, rules):
            return own(*given, **named)

    return {"forward": forward, "lrp_fast_rules": rules}


ATTENTIONS = (
    attention, capped_attention, dynamic_mask_attention, gated_attention, indexed_attention, mixture_of_attentions,
    *SPELT_OUT,
)  # fmt: skip
