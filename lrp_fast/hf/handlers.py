"""How a module of a model comes to obey a rule.

A handler takes ``(module, rules)`` and returns the instance attributes that are laid over the module while it is
patched; nothing means that the module's own code is right under every rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .. import ops
from ..rules import Rules

Overlay = dict[str, Any]
Handler = Callable[[nn.Module, Rules], Overlay]


def leave(module: nn.Module, rules: Rules) -> Overlay:
    """Containers, embeddings, position tables: sums, look-ups, and modules with handlers of their own."""
    return {}


def decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `leave`; marks the modules between which the hidden states are nodes."""
    return {}


def pre_norm_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `decoder_layer`, where what the MLP puts out is added to the residual stream and read by nothing else."""
    return {}


def attention(module: nn.Module, rules: Rules) -> Overlay:
    """A module that goes through transformers' attention interface and holds projections and q/k norms besides."""
    return {"lrp_fast_rules": rules}


def linear(module: nn.Module, rules: Rules) -> Overlay:
    def forward(input):
        input = input.to(getattr(module, "lrp_fast_dtype", input.dtype))  # while a layer is replayed
        return ops.linear(input, module.weight, module.bias, epsilon=rules.epsilon, gamma=rules.gamma)

    return {"forward": forward}


def rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    def forward(hidden_states):
        dtype = getattr(module, "lrp_fast_dtype", None)  # while a layer is replayed
        return ops.rms_norm(hidden_states, module.weight, module.variance_epsilon, rule=rules, dtype=dtype)

    return {"forward": forward}


def activation(kind: str) -> Handler:
    """The handler of an activation module that computes ``kind`` (a name of `lrp_fast.ops.activation`)."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        return {"forward": lambda input: ops.activation(input, kind, rule=rules), "lrp_fast_kind": kind}

    return handler


def kind_of(act_fn: nn.Module) -> str:
    """What a patched activation computes; it is not called itself, so nothing may hang on its call."""
    if act_fn._forward_hooks or act_fn._forward_pre_hooks:
        raise RuntimeError(
            f"a hook on {type(act_fn).__name__}, the activation of a gated MLP, would be passed over: remove it"
        )
    if not hasattr(act_fn, "lrp_fast_kind"):
        raise TypeError(
            f"{type(act_fn).__name__}, the activation of a gated MLP, was registered without saying what it computes: "
            "register it with lrp_fast.hf.handlers.activation(kind)"
        )
    return act_fn.lrp_fast_kind


def gated_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    def forward(x):
        # The activation's own overlay says its kind: it is laid on before any forward pass.
        hidden = ops.gated_mlp(module.gate_proj(x), module.up_proj(x), kind_of(module.act_fn), rule=rules)
        return module.down_proj(hidden)

    return {"forward": forward}
