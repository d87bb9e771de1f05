"""The product of two factors that are both explained, and that in a gated MLP, act(gate) * up."""

from __future__ import annotations

from torch import Tensor

from .activation import activation, activation_backward


def gated_mlp(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate) * up, all of one shape."""
    return activation(gate, kind) * up


def product_backward(g: Tensor, gate: Tensor, up: Tensor, *, rule: str = "attnlrp") -> tuple[Tensor, Tensor]:
    """Relevance gradients of (gate, up), of shapes that broadcast, in gate * up. attnlrp and gim: half each; cp: all to
    up; gradient: the product rule."""
    shares = {"attnlrp": (0.5, 0.5), "gim": (0.5, 0.5), "cp": (0.0, 1.0), "gradient": (1.0, 1.0)}
    gate_share, up_share = shares[rule]
    return (gate_share * g * up).sum_to_size(gate.shape), (up_share * g * gate).sum_to_size(up.shape)


def gated_mlp_backward(
    g: Tensor, gate: Tensor, up: Tensor, kind: str, *, rule: str = "attnlrp"
) -> tuple[Tensor, Tensor]:
    """Relevance gradients of (gate, up). attnlrp, gim: half each; cp: all to up; gradient: the product rule."""
    g_activated, g_up = product_backward(g, activation(gate, kind), up, rule=rule)
    return activation_backward(g_activated, gate, kind, rule=rule), g_up
