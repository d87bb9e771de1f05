"""Handlers of norms: what they divide by, a root mean square, is a constant."""

from __future__ import annotations

import torch
from torch import nn

from .. import ops
from ..rules import Rules
from .functions import by_rule
from .glue import spelt_out
from .overlay import Overlay, forward_of


def rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """Llama's: what is normalised is rounded to the model's dtype, then multiplied with the weight."""


    def forward(hidden_states):
        dtype = module.__dict__.get("lrp_fast_dtype")  # while a layer is replayed
        return ops.rms_norm(hidden_states, module.weight, module.variance_epsilon, rule=rules, dtype=dtype)

    return {"forward": forward}


def wide_rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """OLMo 2's: as `rms_norm`, rounded behind the weight."""

    def forward(x):
        wide = torch.promote_types(x.dtype, torch.float32)
        y = ops.rms_norm(x, module.weight.to(wide), module.variance_epsilon, rule=rules, dtype=wide)
        return y.to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def offset_rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """Gemma's: as `wide_rms_norm`, of a weight that is kept less 1."""

    def forward(x):
        wide = torch.promote_types(x.dtype, torch.float32)
        y = ops.rms_norm(x, 1 + module.weight.to(wide), module.eps, rule=rules, dtype=wide)
        return y.to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def centred_rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """Cohere's: a LayerNorm without bias, with a weight of its own for each head where it normalises heads."""

    def forward(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - wide.mean(-1, keepdim=True)
        ones = wide.new_ones(wide.shape[-1])
        y = ops.rms_norm(wide, ones, module.variance_epsilon, rule=rules) * module.weight.detach().to(wide.dtype)
        return y.to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def layer_norm(module: nn.Module, rules: Rules) -> Overlay:
    if len(module.normalized_shape) > 1:
        raise ValueError(f"lrp_fast normalises the last dimension alone, not {tuple(module.normalized_shape)}")

    def forward(input):
        weight, bias = (None if t is None else t.to(input.dtype) for t in (module.weight, module.bias))
        y = ops.layer_norm(input, weight, bias, module.eps, rule=rules)
        return y.to(getattr(module, "lrp_fast_dtype", input.dtype))

    return {"forward": forward}


def spelt_out_norm(module: nn.Module, rules: Rules) -> Overlay:
    """A norm by its own code, with a weight or without: `functions` are treated there."""
    own = forward_of(module)

    def forward(x):
        with by_rule(module, rules):
            return own(x).to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def gated_norm(module: nn.Module, rules: Rules) -> Overlay:
    """A norm and an MLP that makes a sigmoid's share of what it puts out: `spelt_out`."""
    return spelt_out(module, rules)


NORMS = (rms_norm, wide_rms_norm, offset_rms_norm, centred_rms_norm, layer_norm, spelt_out_norm)
