"""What a decoder layer's input contributes to the keys and values of its attention, without what biases add."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import ops
from ..rules import Rules
from . import experts, handlers, sides, weights
from .families import Part, branch_dtype, handled, handler_of, mlps, mlps_among, moves_tokens, was_audited
from .overlay import forward_name, forward_of, laid
from .state_space import STATE_SPACES
from .walk import modules_of

_HOMOGENEOUS = (
    handlers.decoder_layer,
    handlers.pre_norm_decoder_layer,
    sides.sided_decoder_layer,
    *handlers.ATTENTIONS,
    handlers.dropout,
    *handlers.LINEARS,
    *handlers.NORMS,
)


def check_closed_form(layers: list[nn.Module]) -> None:
    """Refuse layers whose tokens meet otherwise than in one attention: no closed form of their edges is known here.

    Raises:
        ValueError: for the first.
    """
    for i, layer in enumerate(layers):
        if (why := _why_none(layer)) is not None:
            raise ValueError(f"layer {i}: {why}, and the closed form of edges is of one attention: leave the graph out")


def has_closed_form(layers: list[nn.Module]) -> bool:
    return all(_why_none(layer) is None for layer in layers)


def _why_none(layer: nn.Module) -> str | None:
    if sides.has_side_routes(layer):
        return "it reads more than the layer below puts out"
    held = handled(layer)
    others = [module for _, module, handler in held if handler in STATE_SPACES or moves_tokens(module)]
    if others:
        return f"tokens meet in its {type(others[0]).__name__}"
    attentions = [module for _, module, handler in held if handler in handlers.ATTENTIONS]
    return None if len(attentions) == 1 else f"it holds {len(attentions)} attentions"


def contributions(
    layer: nn.Module, rules: Rules, x: Tensor, rest: tuple, named: dict
) -> tuple[Tensor | None, Tensor | None]:
    """(1, H_kv, N, D) for keys, as they reach the attention, and for values.

    That is the input (1, N, D) itself, sent through the linear map that the backward pass transposes: norms frozen, no
    bias, the stabilisers' factors in. A forward-mode derivative, for which a patched layer's own code is run up to its
    attention once more. Where nothing but the map is there, its result is the key and value themselves: None, None.
    """
    if is_homogeneous(handled(layer)) and rules.treatment.frozen_norm and not (rules.epsilon or rules.gamma):
        return None, None
    found: list[Tensor] = []

    def attend(query, key, value, **given):
        found.extend(forward_ad.unpack_dual(part).tangent for part in (key, value))
        return query.new_full((), torch.nan).expand(query.shape)  # nobody reads it

    overlays = []
    for _, module, handler in handled(layer):
        if handler in handlers.LINEARS:
            dtype = weights.own_dtype(module) or branch_dtype(layer)
            overlays.append((module, forward_name(module), _linear(module, rules, dtype)))
        elif handler in _NORMS:  # one that is spelt out is a linear map already
            overlays.append((module, forward_name(module), _norm(module, _NORMS[handler], rules)))
        elif handler in handlers.ATTENTIONS:
            overlays.append((module, "lrp_fast_attend", attend))
        elif handler in (*experts.ROUTERS, *experts.EXPERTS):  # behind the attention, where their layer calls them
            overlays.append((module, forward_name(module), _unseen(module) if handler in experts.ROUTERS else _first))
        elif hasattr(handler, "kind"):  # behind the attention
            overlays.append((module, forward_name(module), lambda z: z))
    for mlp in mlps(layer):  # behind the attention
        paired = handler_of(mlp) in experts.PAIRED
        overlays.append((mlp, forward_name(mlp), (lambda x: (x, None)) if paired else _first))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with laid(overlays), torch.no_grad(), forward_ad.dual_level():
        layer(forward_ad.make_dual(x, x), *rest, **named)
    return found[0], found[1]


def is_homogeneous(held: list[Part]) -> bool:
    """Whether keys and values are the map of the input with nothing added: norms frozen, without stabilisers.

    ``held`` is what `handled` finds in their layer.
    """
    inside = {part for mlp in mlps_among(held) for part in modules_of(mlp)}
    for _, module, handler in held:
        if module in inside:
            continue
        if handler not in _HOMOGENEOUS or _has_bias(module, handler) or was_audited(module):  # which may add constants
            return False
    return True


def _has_bias(module: nn.Module, handler: handlers.Handler) -> bool:
    if handler in handlers.LINEARS:
        return weights.bias(module) is not None
    return getattr(module, "bias", None) is not None


def _unseen(module: nn.Module) -> Callable:
    own = forward_of(module)
    return lambda x: own(forward_ad.unpack_dual(x).primal)


def _first(x: Tensor, *_) -> Tensor:
    return x


def _linear(module: nn.Module, rules: Rules, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    own, stabilisers = type(module).forward, {"epsilon": rules.epsilon, "gamma": rules.gamma}

    def forward(input):
        # The residual stream is wider than a 16-bit model: without a norm in front it comes as it is.
        x, part = (None if t is None else t.to(dtype) for t in forward_ad.unpack_dual(input))
        if part is None:  # behind the attention
            return own(module, x)
        if weights.is_plain(module):
            matrix, bias = weights.matrix(module), module.bias
            return forward_ad.make_dual(*ops.linear_jvp(x, part, matrix, bias, **stabilisers))
        z = own(module, x)
        through = ops.linear_by_rows_jvp(x, part, z, weights.rows(module), weights.bias(module), **stabilisers)
        return forward_ad.make_dual(z, through)

    return forward


def _norm(module: nn.Module, jvp: Callable, rules: Rules) -> Callable[[Tensor], Tensor]:
    def forward(hidden_states):
        x, part = forward_ad.unpack_dual(hidden_states)
        y, through = (t.to(module.weight.dtype) for t in jvp(module, x, x if part is None else part, rules))
        return y if part is None else forward_ad.make_dual(y, through)

    return forward


def _rms_norm(module, x, part, rules):
    scale = (module.weight, module.variance_epsilon)
    return ops.rms_norm_jvp(x, part, *scale, rule=rules, dtype=module.weight.dtype)


def _wide_rms_norm(module, x, part, rules):
    wide = torch.promote_types(x.dtype, torch.float32)
    return ops.rms_norm_jvp(x, part, module.weight.to(wide), module.variance_epsilon, rule=rules, dtype=wide)


def _offset_rms_norm(module, x, part, rules):
    wide = torch.promote_types(x.dtype, torch.float32)
    return ops.rms_norm_jvp(x, part, 1 + module.weight.to(wide), module.eps, rule=rules, dtype=wide)


def _centred_rms_norm(module, x, part, rules):
    wide = torch.promote_types(x.dtype, torch.float32)
    x, part = (t - t.mean(-1, keepdim=True) for t in (x.to(wide), part.to(wide)))
    return ops.rms_norm_jvp(x, part, module.weight.to(wide), module.variance_epsilon, rule=rules)


def _layer_norm(module, x, part, rules):
    weight, bias = (None if t is None else t.to(x.dtype) for t in (module.weight, module.bias))
    return ops.layer_norm_jvp(x, part, weight, bias, module.eps, rule=rules)


_NORMS = {
    handlers.rms_norm: _rms_norm,
    handlers.wide_rms_norm: _wide_rms_norm,
    handlers.offset_rms_norm: _offset_rms_norm,
    handlers.centred_rms_norm: _centred_rms_norm,
    handlers.layer_norm: _layer_norm,
}
