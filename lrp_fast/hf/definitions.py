"""Each operation of a patched model beside its definition in `lrp_fast.reference`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import ops, reference
from . import experts, handlers, weights
from .activations import kind_of
from .families import handled
from .overlay import forward_name, forward_of, laid
from .patching import patched

# A definition takes the module, the relevance gradient of what it puts out and what it was given, and returns the
# relevance gradients of the floats among that.
Definition = Callable[..., Tensor | tuple[Tensor, ...]]


def gaps_to_definitions(model: nn.Module, ids: Tensor) -> dict[str, float]:
    """Relevance gradients of a model of float64 on the CPU, patched with attnlrp, against those of the definitions.

    Each module runs on what reaches it as the model reads ``ids`` (1, N), and hands back a random relevance gradient:
    linear maps, norms, activations, gated MLPs with their linear maps, attentions from queries, keys and values on, and
    experts with their weights in the mixture. A module is what its handler takes it for. Not compared are what makes a
    router's weights of its logits, the expert that all tokens share in its mixture, and a cap on the logits.

    Returns:
        for each of these that the model has, the largest difference, relative to the largest number of its tensor; NaN
        for attentions and others that are never called.
    """
    gaps: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(2)

    def beside(kind: str, own: Callable, definition: Definition) -> Callable:
        if kind != "activations":  # those of a gated MLP are not called
            gaps.setdefault(kind, [])

        def forward(*given, **options):
            if not torch.is_grad_enabled() or not given[0].numel():  # an indexer's; an adapter's that nobody chose
                return own(*given, **options)
            leaves = [one.detach().requires_grad_(one.is_floating_point()) for one in given]
            out = own(*leaves, **options)
            g = torch.randn(out.shape, generator=generator, dtype=out.dtype)
            asked = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(out, asked, g, materialize_grads=True)
            with torch.no_grad():
                truth = definition(g, *leaves, **options)
            for one, other in zip(found, truth if isinstance(truth, tuple) else (truth,), strict=True):
                gaps.setdefault(kind, []).append(((one - other).abs().max() / other.abs().max()).item())
            return own(*given, **options)

        return forward

    with patched(model, "attnlrp"), torch.enable_grad():
        overlays = []
        for _, module, handler in handled(model):
            if handler in handlers.ATTENTIONS:
                overlays.append((module, "lrp_fast_attend", beside("attentions", ops.attention, _attention)))
            elif (known := _definition(handler)) is not None:
                kind, definition = known
                forward = beside(kind, forward_of(module), partial(definition, module))
                overlays.append((module, forward_name(module), forward))
        with laid(overlays):
            model(ids, use_cache=False)
    return {kind: torch.tensor(found or [torch.nan]).max().item() for kind, found in gaps.items()}


def _definition(handler: handlers.Handler) -> tuple[str, Definition] | None:
    if handler in handlers.LINEARS:
        return "linear maps", _linear
    if getattr(handler, "kind", "f") != "f":
        return "activations", _activation
    return _DEFINITIONS.get(handler)


def _linear(module, g, x):
    return reference.linear_backward(g, x, weights.matrix(module), module.bias)


def _activation(module, g, z):
    return reference.activation_backward(g, z, kind_of(module))


def _rms_norm(module, g, x):
    return reference.rms_norm_backward(g, x, module.weight, module.variance_epsilon)


def _offset_rms_norm(module, g, x):
    return reference.rms_norm_backward(g, x, 1 + module.weight, module.eps)


def _centred_rms_norm(module, g, x):
    return reference.layer_norm_backward(g, x, module.weight, module.variance_epsilon)


def _layer_norm(module, g, x):
    return reference.layer_norm_backward(g, x, module.weight, module.eps)


def _out(linear, x):
    return reference.linear(x, weights.matrix(linear), linear.bias)


def _gated_mlp(module, g, x):
    gate, up, kind = _out(module.gate_proj, x), _out(module.up_proj, x), kind_of(module.act_fn)
    g_hidden = _linear(module.down_proj, g, reference.gated_mlp(gate, up, kind))
    g_gate, g_up = reference.gated_mlp_backward(g_hidden, gate, up, kind)
    return _linear(module.gate_proj, g_gate, x) + _linear(module.up_proj, g_up, x)


def _fused_gated_mlp(module, g, x):
    (gate, up), kind = _out(module.gate_up_proj, x).chunk(2, -1), kind_of(module.activation_fn)
    g_hidden = _linear(module.down_proj, g, reference.gated_mlp(gate, up, kind))
    g_both = torch.cat(reference.gated_mlp_backward(g_hidden, gate, up, kind), -1)
    return _linear(module.gate_up_proj, g_both, x)


def _attention(g, query, key, value, *, scale, causal, window, chunk, softcap, sinks, chosen=None, block=1, **_):
    """Of one unpadded prompt, whatever rule the attention is told."""
    mask = reference.visible(1, query.shape[2], key.shape[2], causal=causal, window=window, chunk=chunk)
    if chosen is not None:
        mask = reference.among(mask, chosen(), block)
        mask = mask.repeat_interleave(1 if mask.shape[1] == 1 else query.shape[1] // mask.shape[1], 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference.attention_backward(g, query, key, value, mask, scale=scale, softcap=softcap, sinks=sinks)


def _gated_experts(module, g, x, chosen, shares):
    def between(both):
        return reference.gated_mlp(*both.chunk(2), kind_of(module.act_fn))

    def between_backward(g, both):
        return torch.cat(reference.gated_mlp_backward(g, *both.chunk(2), kind_of(module.act_fn)))

    return _mixed(module, between, between_backward, g, x, chosen, shares)


def _clamped_experts(module, g, x, chosen, shares):
    def turns(both):
        return both[::2], both[1::2]

    def together(*parts):
        return torch.stack(parts, -1).flatten()

    return _clamped(module, (module.alpha, module.limit, 1), turns, together, g, x, chosen, shares)


def _clamped_half_experts(module, g, x, chosen, shares):
    numbers = (module.swiglu_alpha, module.swiglu_limit, 1)
    return _clamped(module, numbers, _halves, _side_by_side, g, x, chosen, shares)


def _clamped_silu_experts(module, g, x, chosen, shares):
    return _clamped(module, (1, module.swiglu_limit, 0), _halves, _side_by_side, g, x, chosen, shares)


def _halves(both):
    return both.chunk(2)


def _side_by_side(*parts):
    return torch.cat(parts)


def _clamped(module, numbers, split, join, *given):
    """The product of two functions of one number each, half to each, which both pass relevance by f(z) / z."""
    alpha, limit, more = numbers

    def factors(both):
        gate, up = split(both)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate), up

    def between(both):
        gate, up = factors(both)
        return gate * (up + more)

    def between_backward(g, both):
        gate, up = factors(both)
        z_gate, z_up = split(both)
        return join(g * (up + more) / 2 * gate / z_gate, g * gate / 2 * up / z_up)

    return _mixed(module, between, between_backward, *given)


def _mixed(module, between, between_backward, g, x, chosen, shares):
    """Of the tokens x (N, D), one after the other, and of the shares (N, k) of the experts ``chosen`` for them."""
    g_x, g_shares = torch.zeros_like(x), torch.zeros_like(shares)
    for n, experts_of in enumerate(chosen.tolist()):
        for k, expert in enumerate(experts_of):
            first, last = (experts.matrix_of(module, name, expert) for name in ("gate_up_proj", "down_proj"))
            both = reference.linear(x[n], *first)
            hidden = between(both)
            g_shares[n, k] = g[n] @ reference.linear(hidden, *last) / 2
            g_hidden = reference.linear_backward(shares[n, k] * g[n] / 2, hidden, *last)
            g_x[n] += reference.linear_backward(between_backward(g_hidden, both), x[n], *first)
    return g_x, g_shares


_DEFINITIONS: dict[handlers.Handler, tuple[str, Definition]] = {
    handlers.rms_norm: ("norms", _rms_norm),
    handlers.wide_rms_norm: ("norms", _rms_norm),
    handlers.offset_rms_norm: ("norms", _offset_rms_norm),
    handlers.centred_rms_norm: ("norms", _centred_rms_norm),
    handlers.layer_norm: ("norms", _layer_norm),
    handlers.gated_mlp: ("gated MLPs", _gated_mlp),
    handlers.fused_gated_mlp: ("gated MLPs", _fused_gated_mlp),
    experts.gated_experts: ("experts", _gated_experts),
    experts.wide_gated_experts: ("experts", _gated_experts),
    experts.clamped_experts: ("experts", _clamped_experts),
    experts.clamped_half_experts: ("experts", _clamped_half_experts),
    experts.clamped_silu_experts: ("experts", _clamped_silu_experts),
}
