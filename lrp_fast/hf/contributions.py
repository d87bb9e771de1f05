"""What a decoder layer's input contributes to the keys and values of its attention, without what biases add."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import ops
from ..rules import Rules
from . import handlers
from .families import handler_of
from .overlay import forward_name, laid

_HOMOGENEOUS = (
    handlers.decoder_layer,
    handlers.pre_norm_decoder_layer,
    handlers.attention,
    handlers.linear,
    handlers.rms_norm,
)


def contributions(
    layer: nn.Module, rules: Rules, x: Tensor, rest: tuple, named: dict
) -> tuple[Tensor | None, Tensor | None]:
    """(1, H_kv, N, D) for keys, as they reach the attention, and for values.

    That is the input (1, N, D) itself, sent through the linear map that the backward pass transposes: norms frozen, no
    bias, the stabilisers' factors in. A forward-mode derivative, for which a patched layer's own code is run up to its
    attention once more. Where nothing but the map is there, its result is the key and value themselves: None, None.
    """
    if _is_homogeneous(layer, rules):
        return None, None
    found: list[Tensor] = []

    def attend(query, key, value, **given):
        found.extend(forward_ad.unpack_dual(part).tangent for part in (key, value))
        return query.new_full((), torch.nan).expand(query.shape)  # nobody reads it

    overlays = []
    for module in layer.modules():
        handler = handler_of(module)
        if handler is handlers.linear:
            overlays.append((module, forward_name(module), _linear(module, rules)))
        elif handler is handlers.rms_norm:
            overlays.append((module, forward_name(module), _rms_norm(module, rules)))
        elif handler is handlers.gated_mlp:
            overlays.append((module, forward_name(module), lambda x: x))
        elif handler is handlers.attention:
            overlays.append((module, "lrp_fast_attend", attend))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with laid(overlays), torch.no_grad(), forward_ad.dual_level():
        layer(forward_ad.make_dual(x, x), *rest, **named)
    return found[0], found[1]


def _is_homogeneous(layer: nn.Module, rules: Rules) -> bool:
    """Whether keys and values are the modified map of the input, with nothing added and nothing scaled."""
    if rules.epsilon or rules.gamma or not rules.treatment.frozen_norm:
        return False
    inside = {
        part for module in layer.modules() if handler_of(module) is handlers.gated_mlp for part in module.modules()
    }
    modules = [module for module in layer.modules() if module not in inside]
    return all(handler_of(module) in _HOMOGENEOUS and getattr(module, "bias", None) is None for module in modules)


def _linear(module: nn.Module, rules: Rules) -> Callable[[Tensor], Tensor]:
    def forward(input):
        x, part = forward_ad.unpack_dual(input)
        if part is None:  # behind the attention
            return nn.functional.linear(x, module.weight, module.bias)
        stabilisers = {"epsilon": rules.epsilon, "gamma": rules.gamma}
        return forward_ad.make_dual(*ops.linear_jvp(x, part, module.weight, module.bias, **stabilisers))

    return forward


def _rms_norm(module: nn.Module, rules: Rules) -> Callable[[Tensor], Tensor]:
    def forward(hidden_states):
        x, part = forward_ad.unpack_dual(hidden_states)
        both = (x, x if part is None else part)
        y = ops.rms_norm_jvp(*both, module.weight, module.variance_epsilon, rule=rules, dtype=module.weight.dtype)
        return y[0] if part is None else forward_ad.make_dual(*y)

    return forward
