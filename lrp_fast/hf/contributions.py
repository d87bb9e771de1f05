"""What a decoder layer's input contributes to the keys and values of its attention, without what biases add."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import ops
from ..rules import Rules
from . import experts, handlers, sides, weights
from .activations import kind_of
from .families import Part, branch_dtype, handled, handler_of, mlps, mlps_among, moves_tokens, was_audited
from .overlay import forward_name, forward_of, laid
from .spelt_out_attention import biases_scores
from .state_space import SCANS, STATE_SPACES, without_edges
from .walk import modules_of

_HOMOGENEOUS = (
    handlers.decoder_layer,
    handlers.pre_norm_decoder_layer,
    sides.sided_decoder_layer,
    *(one for one in handlers.ATTENTIONS if one is not handlers.dynamic_mask_attention),
    handlers.dropout,
    *handlers.LINEARS,
    *handlers.NORMS,
)


def check_closed_form(layers: list[nn.Module], rules: Rules) -> None:
    """Refuse layers whose tokens meet otherwise than in attentions and scans side by side: no closed form of their
    edges is known here.

    Raises:
        ValueError: for the first.
    """
    for i, layer in enumerate(layers):
        if (why := _why_none(layer, rules)) is not None:
            raise ValueError(f"layer {i}: {why}: leave the graph out")


def has_closed_form(layers: list[nn.Module], rules: Rules) -> bool:
    return all(_why_none(layer, rules) is None for layer in layers)


def _why_none(layer: nn.Module, rules: Rules) -> str | None:
    if sides.has_side_routes(layer):
        return "it reads more than the layer below puts out"
    held = handled(layer)
    known = "and the closed form of edges is of one attention or scan"
    if others := [module for _, module, handler in held if moves_tokens(module) and handler not in STATE_SPACES]:
        return f"tokens meet in its {type(others[0]).__name__}, {known}"
    scans = [module for _, module, handler in held if handler in STATE_SPACES]
    attentions = [module for _, module, handler in held if handler in handlers.ATTENTIONS]
    if len(scans) + len(attentions) > 1 and handler_of(layer) is not handlers.parallel_decoder_layer:
        return f"it holds {len(attentions)} attentions and {len(scans)} scans, {known}"
    for module in scans:
        if (when := without_edges(module, handler_of(module), rules)) is not None:
            return f"no closed form is known of the edges of its {type(module).__name__}{when}"
    return None


def contributions(
    layer: nn.Module, rules: Rules, x: Tensor, rest: tuple, named: dict, calls: int
) -> list[ops.Parts]:
    """For each of the ``calls`` of attentions and scans in a layer, in their order, what its input contributes to what
    is mixed: (1, H_kv, N, D) to keys, as they reach the attention, and values; (lags, 1, N, ...) to what a scan is
    given, from so many positions before.

    That is the input (1, N, D) itself, sent through the linear map that the backward pass transposes: norms frozen, no
    bias, the stabilisers' factors in. A forward-mode derivative, for which a patched layer's own code is run up to its
    attention once more. Where nothing but the map is there, its result is the key and value themselves: None, None.
    Behind a convolution that reads so many tokens, the derivative is taken once for each: of every such token's input.
    """
    held = handled(layer)
    if calls == 0:
        return []
    if is_homogeneous(held) and rules.treatment.frozen_norm and not (rules.epsilon or rules.gamma):
        return [(None, None)]
    scans = [module for _, module, handler in held if handler in SCANS]
    reach = max((getattr(module, "lrp_fast_reach", 1) for _, module, _ in held), default=1)
    found: list[tuple[bool, ops.Parts]] = []
    clean = bool(x.isfinite().all())

    def keep(is_scan: bool, given: tuple[Tensor, ...]) -> None:
        # What an attention puts out here is NaN, and a prompt of a batch may be.
        if found and clean and not all(forward_ad.unpack_dual(one).primal.isfinite().all() for one in given):
            raise ValueError(f"{type(layer).__name__} mixes what it has mixed before, of which lrp_fast knows no edges")
        found.append((is_scan, tuple(forward_ad.unpack_dual(one).tangent for one in given)))
        if len(found) == calls:
            raise _Enough

    def attend(query, key, value, **given):
        keep(False, (key, value))
        return query.new_full((), torch.nan).expand(query.shape)  # nobody reads it

    def mix(run, form, *given):
        keep(True, given)
        raise _EnoughOfIt

    overlays = [(module, forward_name(module), _up_to_its_scan(module)) for module in scans]
    overlays += [(module, "lrp_fast_mix", mix) for module in scans]
    for _, module, handler in held:
        if handler in handlers.LINEARS:
            dtype = weights.own_dtype(module) or branch_dtype(layer)
            overlays.append((module, forward_name(module), _linear(module, rules, dtype)))
        elif handler in _NORMS:  # one that is spelt out is a linear map already
            overlays.append((module, forward_name(module), _norm(module, _NORMS[handler], rules)))
        elif handler in handlers.ATTENTIONS:
            overlays.append((module, "lrp_fast_attend", attend))
        elif handler in (*experts.ROUTERS, *experts.EXPERTS):  # behind the attention, where their layer calls them
            overlays.append((module, forward_name(module), _unseen(module) if handler in experts.ROUTERS else _first))
        elif hasattr(handler, "kind"):
            overlays.append((module, forward_name(module), _activation(module, rules)))
    for mlp in mlps(layer):  # behind the attention
        paired = handler_of(mlp) in experts.PAIRED
        overlays.append((mlp, forward_name(mlp), (lambda x: (x, None)) if paired else _first))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    places = torch.arange(x.shape[1], device=x.device) % reach
    runs = []
    with laid(overlays), torch.no_grad():
        for place in range(reach):
            with forward_ad.dual_level():
                tokens = x if reach == 1 else x * (places == place).unsqueeze(-1)
                with suppress(_Enough):
                    layer(forward_ad.make_dual(x, tokens), *rest, **named)
            runs.append(found[:])
            found.clear()
    if any(len(one) != calls for one in runs):
        raise ValueError(f"{type(layer).__name__} has a part that mixes tokens twice, of which lrp_fast knows no edges")
    return [_by_lags(*one) for one in zip(*runs, strict=True)]


class _Enough(Exception):
    """All is known that was to be found out."""


class _EnoughOfIt(Exception):
    """What one scan is given is known."""


def _up_to_its_scan(module: nn.Module) -> Callable:
    own = forward_of(module)

    def forward(*given, **named):
        try:
            own(*given, **named)
        except _EnoughOfIt:
            x = forward_ad.unpack_dual(next(iter((*given, *named.values())))).primal
            return x.new_full((), torch.nan).expand(x.shape)  # nobody reads it
        raise RuntimeError(f"{type(module).__name__} has run without its scan")

    return forward


def _by_lags(*found: tuple[bool, ops.Parts]) -> ops.Parts:
    """What a call was given, from the input of every so many tokens each time: summed for an attention, which reads
    those of one token; for a scan by how many positions before."""
    is_scan, _ = found[0]
    each = list(zip(*(parts for _, parts in found), strict=True))
    if not is_scan:
        return tuple(sum(parts) for parts in each)
    return tuple(None if any(one is None for one in parts) else _lagged(parts) for parts in each)


def _lagged(parts: tuple[Tensor, ...]) -> Tensor:
    """(lags, 1, N, ...): of (1, N, ...) each, from the input at every place alone of as many, in turn."""
    length, reach = parts[0].shape[1], len(parts)
    stacked = torch.stack(parts)
    places = torch.arange(length, device=stacked.device)
    return torch.stack([stacked[(places - lag) % reach, :, places].transpose(0, 1) for lag in range(reach)])


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
        if biases_scores(module, handler):
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


def _activation(module: nn.Module, rules: Rules) -> Callable[[Tensor], Tensor]:
    def forward(input):
        z, part = forward_ad.unpack_dual(input)
        if part is None:  # behind the attention
            return z
        return forward_ad.make_dual(*ops.activation_jvp(z, part, kind_of(module), rule=rules))

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
