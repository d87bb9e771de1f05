"""Handlers of activations, functions of one number: relevance passes by f(z)/z."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..ops.activation import ratio as ratio_of
from ..rules import Rules
from .hooks import check_unhooked
from .overlay import Handler, Overlay, forward_of


def activation(kind: str) -> Handler:
    """The handler of an activation module that computes ``kind`` (a name of `lrp_fast.ops.activation`)."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        return {"forward": lambda input: ops.activation(input, kind, rule=rules), "lrp_fast_kind": kind}

    handler.kind = kind
    return handler


def gelu(module: nn.Module, rules: Rules) -> Overlay:
    """PyTorch's own module, which knows both."""
    return activation("gelu" if module.approximate == "none" else "gelu_tanh")(module, rules)


gelu.kind = "gelu"


def spelt_out_activation(kind: str) -> Handler:
    """As `activation`, where the module's own formula rounds otherwise than PyTorch's one operation."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        return _by_ratio(module, rules, lambda input: ratio_of(input, kind)) | {"lrp_fast_kind": kind}

    handler.kind = kind
    return handler


def pointwise(limit: float | str) -> Handler:
    """The handler of a function of one number that has no kernel: relevance passes by f(z)/z, which is ``limit`` at 0
    (a number, or the name of a buffer that holds it)."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        own = forward_of(module)

        def ratio(input):
            z = input.to(torch.promote_types(input.dtype, torch.float32))
            at_0 = getattr(module, limit).to(z.dtype) if isinstance(limit, str) else z.new_tensor(limit)
            return torch.where(z == 0, at_0, own(z) / z)

        return _by_ratio(module, rules, ratio)

    handler.kind = "f"
    return handler


bloom_gelu = pointwise(0.5)  # a function of autograd's, of fewer digits than PyTorch's


def _by_ratio(module: nn.Module, rules: Rules, ratio: Callable[[Tensor], Tensor]) -> Overlay:
    """A function of one number by the module's own code; relevance passes by ``ratio``, f(z)/z at each."""
    own = forward_of(module)

    def forward(input):
        if not rules.treatment.ratio:
            return own(input)
        with torch.no_grad():
            y, factors = own(input), ratio(input)
        return ops.identity(input, y, factors)

    return {"forward": forward}


def kind_of(act_fn: nn.Module) -> str:
    """What a patched activation computes; it is not called itself, so nothing may hang on its call."""
    if act_fn is F.silu:  # LFM2-MoE's experts hold the function itself
        return "silu"
    check_unhooked(act_fn, "the activation of a gated MLP")
    if not hasattr(act_fn, "lrp_fast_kind"):
        raise TypeError(
            f"{type(act_fn).__name__}, the activation of a gated MLP, was registered without saying what it computes: "
            "register it with lrp_fast.hf.handlers.activation(kind)"
        )
    return act_fn.lrp_fast_kind
