"""Norms, activations, gated MLPs, and the relevance of a node."""

from __future__ import annotations

from functools import partial

import torch

from .. import ops, reference
from ..ops.activation import ACTIVATIONS
from .case import Case, Size, through

_EPS = 1e-3
_RULES = ("attnlrp", "gradient")  # cp is attnlrp to norms and activations
_SHARP = 3.0  # spread of what an activation takes, so that it bends


def cases(size: Size) -> list[Case]:
    shape = (size.rows, size.features)
    found = []
    for norm in (rms_norm, layer_norm):
        found += [_norm(norm, shape, False), _norm(norm, shape, True)]
        found += [_norm_backward(norm, shape, rule, of_sum) for rule in _RULES for of_sum in (False, True)]
    for kind in ACTIVATIONS:
        found += [_activation(kind, shape), *(_activation_backward(kind, shape, rule) for rule in _RULES)]
    for kind, rule in (("silu", "attnlrp"), ("silu", "cp"), ("silu", "gradient"), ("gelu_tanh", "attnlrp")):
        found += [*([_gated(kind, shape)] if rule == "attnlrp" else []), _gated_backward(kind, shape, rule)]
    return [*found, _relevance(shape)]


def _draw(shape, *spreads: float, vectors: int = 0):
    """Matrices of these spreads, then vectors of as many features."""

    def draw(generator):
        matrices = (torch.randn(shape, generator=generator) * spread for spread in spreads)
        return *matrices, *(torch.randn(shape[-1], generator=generator) for _ in range(vectors))

    return draw


def rms_norm(x, weight, bias, **given):
    return ops.rms_norm(x, weight, _EPS, **given)


def layer_norm(x, weight, bias, **given):
    return ops.layer_norm(x, weight, bias, _EPS, **given)


def _defined(norm):
    """The name of a norm, its definition, and that of its backward pass."""
    if norm is rms_norm:
        return "RMSNorm", lambda x, w, b: reference.rms_norm(x, w, _EPS), reference.rms_norm_backward
    return "LayerNorm", lambda x, w, b: reference.layer_norm(x, w, b, _EPS), reference.layer_norm_backward


def _norm(norm, shape, residual: bool) -> Case:
    name, definition, _ = _defined(norm)

    def prepare(impl, x, more, weight, bias):
        given = {"residual": more} if residual else {}

        def call():
            found = norm(x, weight, bias, **given, impl=impl)
            return found if residual else (found,)

        return call

    def define(found, x, more, weight, bias):
        total = x + more if residual else x
        return (definition(total, weight, bias), *([total] if residual else []))

    form = "of a sum" if residual else "plain"
    return Case(name, form, _draw(shape, 1.0, 1.0, vectors=2), prepare, define, (shape[-1], 1)[: 1 + residual])


def _norm_backward(norm, shape, rule: str, residual: bool) -> Case:
    name, _, definition = _defined(norm)

    def prepare(impl, g, g_total, x, more, weight, bias):
        given = {"rule": rule, "impl": impl}
        if not residual:
            return through(lambda x: norm(x, weight, bias, **given), (g,), x)
        return through(lambda x, more: norm(x, weight, bias, residual=more, **given), (g, g_total), x, more)

    def define(found, g, g_total, x, more, weight, bias):
        if not residual:
            return (definition(g, x, weight, _EPS, rule=rule),)
        g_in = definition(g, x + more, weight, _EPS, rule=rule) + g_total
        return g_in, g_in

    form = {"attnlrp": "rstd a constant", "gradient": "gradient"}[rule] + ", of a sum" * residual
    terms = (shape[-1],) * (1 + residual)
    return Case(f"{name} backward", form, _draw(shape, 1.0, 1.0, 1.0, 1.0, vectors=2), prepare, define, terms)


def _activation(kind: str, shape) -> Case:
    def prepare(impl, z):
        return lambda: (ops.activation(z, kind, impl=impl),)

    def define(found, z):
        return (reference.activation(z, kind),)

    return Case("activation", kind, _draw(shape, _SHARP), prepare, define, (4,))


def _activation_backward(kind: str, shape, rule: str) -> Case:
    def prepare(impl, g, z):
        return through(lambda z: ops.activation(z, kind, rule=rule, impl=impl), (g,), z)

    def define(found, g, z):
        return (reference.activation_backward(g, z, kind, rule=rule),)

    form = f"{kind}, {rule}"
    return Case("activation backward", form, _draw(shape, 1.0, _SHARP), prepare, define, (4,))


def _gated(kind: str, shape) -> Case:
    def prepare(impl, gate, up):
        return lambda: (ops.gated_mlp(gate, up, kind, impl=impl),)

    def define(found, gate, up):
        return (reference.gated_mlp(gate, up, kind),)

    return Case("gated MLP", kind, _draw(shape, _SHARP, 1.0), prepare, define, (4,))


def _gated_backward(kind: str, shape, rule: str) -> Case:
    def prepare(impl, g, gate, up):
        return through(partial(ops.gated_mlp, kind=kind, rule=rule, impl=impl), (g,), gate, up)

    def define(found, g, gate, up):
        g_gate, g_up = reference.gated_mlp_backward(g, gate, up, kind, rule=rule)
        return None if rule == "cp" else g_gate, g_up

    form = f"{kind}, {rule}"
    return Case("gated MLP backward", form, _draw(shape, 1.0, _SHARP, 1.0), prepare, define, (4, 4))


def _relevance(shape) -> Case:
    def prepare(impl, x, g):
        return lambda: (ops.node_relevance(x, g.float(), impl=impl),)  # in float32, as on the residual stream

    def define(found, x, g):
        return ((x * g).sum(-1),)

    return Case("node relevance", f"{shape[-1]} features", _draw(shape, 1.0, 1.0), prepare, define, (shape[-1],))
