"""The forms of attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops, reference
from ..reference import rounding
from ..rules import Rules
from .case import Case, Inputs, Size, through


@dataclass(frozen=True)
class Form:
    """One way to call an attention."""

    name: str
    head_dim: int
    queries: int
    keys: int
    rules: Rules = Rules()
    heads: int = 4
    kv_heads: int = 2
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bounds: tuple[tuple[int, int], ...] | None = None
    few: bool = False  # the last query alone carries relevance

    @property
    def flags(self) -> dict:
        return {"window": self.window, "softcap": self.softcap}

    @property
    def batch(self) -> int:
        return len(self.bounds or (0,))

    def draw(self, generator: torch.Generator) -> Inputs:
        """g, query, key, value, sinks and bounds; the heads of a token side by side, as in a model."""

        def heads(count: int, length: int) -> Tensor:
            return torch.randn(self.batch, length, count, self.head_dim, generator=generator).transpose(1, 2)

        mine, theirs = (self.heads, self.queries), (self.kv_heads, self.keys)
        g, query, key, value = (heads(*each) for each in (mine, mine, theirs, theirs))
        if self.few:
            g[:, :, :-1] = 0
        sinks = torch.linspace(-1, 2, self.heads) if self.sinks else None
        return g, query, key, value, sinks, None if self.bounds is None else torch.tensor(self.bounds)

    def attend(self, impl: str, query, key, value, sinks, bounds, **given) -> Tensor:
        given |= self.flags | {"rule": self.rules, "impl": impl}
        return ops.attention(query, key, value, sinks=sinks, bounds=bounds, **given)

    def mask(self, bounds: Tensor | None) -> Tensor:
        return reference.visible(self.batch, self.queries, self.keys, window=self.window, bounds=bounds)

    def defined(self, sinks: Tensor | None) -> dict:
        """What both definitions take."""
        return {"scale": self.head_dim**-0.5, "softcap": self.softcap, "sinks": sinks}

    def stabilised(self) -> dict:
        """What the definition of the backward pass takes besides."""
        rules = self.rules
        return {"rule": rules.name, "epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma}

    def slope(self, g, query, key, value, sinks, bounds) -> float:
        epsilon, gamma = self.rules.attention_epsilon, self.rules.attention_gamma
        if not (epsilon or gamma):
            return 1.0
        values = value if gamma else reference.attention(query, key, value, self.mask(bounds), **self.defined(sinks))
        return rounding.slope_of_stabilisers(values.abs().max().item(), epsilon, gamma)


def cases(size: Size) -> list[Case]:
    return [case for form in forms(size) for case in cases_of(form)]


def cases_of(form: Form) -> list[Case]:
    """Its forward and its backward pass."""
    return [_forward(form), _backward(form)]


def forms(size: Size) -> list[Form]:
    n, (dim, *others) = size.tokens, size.head_dims
    half, part = n // 2, n // 3
    plain = (dim, n, n)
    few = (dim, half, half)  # where the definition makes numbers of T x S x head_dim
    return [
        Form(f"attnlrp, head_dim {dim}", *plain),
        *(Form(f"attnlrp, head_dim {other}", other, n, n) for other in others),
        Form("gradient", *plain, Rules("gradient")),
        Form("cp", *plain, Rules("cp")),
        Form("epsilon", *plain, Rules(attention_epsilon=0.5)),
        Form("gamma", *few, Rules(attention_gamma=0.25), heads=2, kv_heads=1),
        Form("cp, epsilon and gamma", *few, Rules("cp", attention_epsilon=0.5, attention_gamma=0.25), heads=2),
        Form("soft-cap", *plain, softcap=5.0),
        Form("soft-cap, gradient", *plain, Rules("gradient"), softcap=5.0),
        Form("sinks", *plain, sinks=True),
        Form("window", *plain, window=part),
        Form("padded batch", *plain, bounds=((0, n - part), (part, n))),
        Form("as many key heads as heads", *plain, heads=2),
        Form("fewer queries than keys", dim, part, n),
        Form("few rows with relevance", *plain, few=True),
    ]


def _forward(form: Form) -> Case:
    def prepare(impl, g, *inputs):
        def call():
            with torch.no_grad():
                return (form.attend(impl, *inputs),)

        return call

    def define(found, g, query, key, value, sinks, bounds):
        return (reference.attention(query, key, value, form.mask(bounds), **form.defined(sinks)),)

    return Case("attention", form.name, form.draw, prepare, define, (form.head_dim + form.keys,))


def _backward(form: Form) -> Case:
    def prepare(impl, g, query, key, value, sinks, bounds):
        return through(lambda *leaves: form.attend(impl, *leaves, sinks, bounds), (g,), query, key, value)

    def define(found, g, query, key, value, sinks, bounds):
        given = form.defined(sinks) | form.stabilised()
        truth = reference.attention_backward(g, query, key, value, form.mask(bounds), **given)
        return truth if form.rules.treatment.score else (None, None, truth[2])

    # Two sums lie behind a number: of head_dim products in a score, then over the keys, or the queries that meet it.
    seen = form.queries * form.heads // form.kv_heads
    terms = (form.head_dim + form.keys, form.head_dim + seen, form.head_dim + seen)
    # Kernels of PyTorch's round what each head hands to a key to 16 bits before they add up the heads that share it.
    shared = 4 + form.heads // form.kv_heads
    return Case("attention backward", form.name, form.draw, prepare, define, terms, (4, shared, shared), form.slope)
