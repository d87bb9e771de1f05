"""Handlers of MLPs: of a gate, act(gate) * up, or of an activation between two linear maps."""

from __future__ import annotations

from torch import nn

from .. import ops
from ..rules import Rules
from .activations import kind_of
from .glue import spelt_out
from .overlay import Overlay, forward_of


def gated_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    def forward(x):
        # The activation's own overlay says its kind: it is laid on before any forward pass.
        hidden = ops.gated_mlp(module.gate_proj(x), module.up_proj(x), kind_of(module.act_fn), rule=rules)
        return module.down_proj(hidden)

    return {"forward": forward}


def fused_gated_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """As `gated_mlp`, with one projection whose first half is the gate."""

    def forward(hidden_states):
        gate, up = module.gate_up_proj(hidden_states).chunk(2, -1)
        return module.down_proj(ops.gated_mlp(gate, up, kind_of(module.activation_fn), rule=rules))

    return {"forward": forward}


def spelt_out_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """A gated MLP by its own code, whatever it calls its parts: `spelt_out`."""
    return spelt_out(module, rules)


def mlp(module: nn.Module, rules: Rules) -> Overlay:
    """last(act(first(x))), without a gate."""
    return {}


def falcon_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """As `mlp`. Falcon's layer drops of what it puts out, and adds to it in place, where autograd may still need it."""
    if module.training and module.hidden_dropout:
        raise ValueError("the model applies dropout: call model.eval() first")
    own = forward_of(module)
    return {"forward": lambda x: own(x).clone()}


def gpt2_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """c_proj(act(c_fc(x)))."""
    return {}
