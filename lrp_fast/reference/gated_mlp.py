"""The product in a gated MLP, act(gate) * up."""

from __future__ import annotations

from torch import Tensor

from .activation import activation, activation_backward


def gated_mlp(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate) * up, all of one shape."""
    return activation(gate, kind) * up


def gated_mlp_backward(
    g: Tensor, gate: Tensor, up: Tensor, kind: str, *, rule: str = "attnlrp"
) -> tuple[Tensor, Tensor]:
    """Relevance gradients of (gate, up). attnlrp: half each; cp: all to up; gradient: the product rule."""
    gate_share, up_share = {"attnlrp": (0.5, 0.5), "cp": (0.0, 1.0), "gradient": (1.0, 1.0)}[rule]
    g_gate = activation_backward(gate_share * g * up, gate, kind, rule=rule)
    return g_gate, up_share * g * activation(gate, kind)
