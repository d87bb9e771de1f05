"""The product in a gated MLP: SwiGLU, GeGLU and their kin."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from . import pointwise_native
from .activation import find, slope
from .backend import fused, kernels
from .once import once


def gated_mlp(
    gate: Tensor, up: Tensor, kind: str = "silu", *, rule: str | Rules = "attnlrp", impl: str = "auto"
) -> Tensor:
    """``act(gate) * up`` with the relevance shared between its factors: half each (attnlrp), or all to ``up`` (cp).

    Args:
        gate, up: the outputs of the gate and up projections, one shape and float dtype.
        kind: the activation, and impl, as in `activation`.

    Raises:
        ValueError: for an unknown ``kind`` or differing shapes.
    """
    find(kind)
    if gate.shape != up.shape:
        raise ValueError(f"gate and up must have one shape, not {tuple(gate.shape)} and {tuple(up.shape)}")
    return _GatedMLP.apply(gate, up, kind, as_rules(rule), fused(gate, impl))


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, kind, rules, fused):
        ctx.kind, ctx.rules, ctx.fused = kind, rules, fused
        ctx.save_for_backward(gate, *([up] if rules.treatment.gate else []))
        return kernels("gated_mlp").gated_mlp_forward(gate, up, kind) if fused else find(kind).forward(gate).mul_(up)

    @staticmethod
    @once
    def backward(ctx, g):
        gate, *rest = ctx.saved_tensors
        shares = ctx.rules.treatment
        if ctx.fused:
            given = {"ratio": shares.ratio, "gate_share": shares.gate, "up_share": shares.up}
            return (
                *kernels("gated_mlp").gated_mlp_backward(g, gate, rest[0] if rest else None, ctx.kind, **given),
                None,
                None,
                None,
            )
        if shares.ratio and pointwise_native.multiplies(ctx.kind, g, gate, *rest):
            up = rest[0] if rest else None
            g_gate, g_up = pointwise_native.gated_mlp_backward(g, gate, up, ctx.kind, shares.up)
            return g_gate, g_up, None, None, None
        forward = find(ctx.kind).forward
        if not rest:  # the gate is a constant
            return None, forward(gate).mul_(g).mul_(shares.up), None, None, None
        slopes = slope(gate, ctx.kind, ctx.rules)
        # Where the gate has a share, it is that of the other factor: one product of both, in one pass over memory.
        passed = torch.addcmul(slopes.new_zeros(()), slopes, g, value=shares.up, out=slopes)
        g_up = passed * gate if shares.ratio else forward(gate).mul_(g).mul_(shares.up)
        return passed.mul_(rest[0]).to(g.dtype), g_up.to(g.dtype), None, None, None
