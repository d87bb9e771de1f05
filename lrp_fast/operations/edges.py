"""Edges through an attention: lists, whole tiles, and the choice by mass.

Which of two nearly equal edges was kept is a matter of rounding. So what was kept is held against the definition at the
places where it was kept, strengths in order against those of a sort, and sums of the rest against the rest.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import ops, reference
from ..ops.select import Selected, by_mass
from ..rules import Rules
from .attention import Form
from .case import Case, Inputs, Size

_KEPT = 8  # edges of a query
_MASS = 0.6


def cases(size: Size) -> list[Case]:
    dim, *others = size.head_dims
    n, s = size.edges, size.edges + size.edges // 2
    plain, half = Form("attnlrp", dim, n, s), n // 3
    forms = [
        replace(plain, name=f"attnlrp, head_dim {dim}"),
        *(replace(plain, name=f"attnlrp, head_dim {other}", head_dim=other) for other in others),
        replace(plain, name="gradient", rules=Rules("gradient")),
        replace(plain, name="cp", rules=Rules("cp")),
        replace(plain, name="soft-cap", softcap=5.0),
        replace(plain, name="window", window=half),
        replace(plain, name="as many key heads as heads", heads=2),
    ]
    stabilised = Rules(attention_epsilon=0.5, attention_gamma=0.25)
    gamma = Form("epsilon and gamma, with parts", dim, half, half, stabilised, heads=2, kv_heads=1)
    parts = [(replace(plain, name="with parts"), True), (gamma, True)]
    found = [_lists(form, given) for form, given in [*((form, False) for form in forms), *parts]]
    found += [_tiles(form, given) for form, given in [(forms[0], False), *parts]]
    return [*found, _by_mass(n)]


def _draw(form: Form, parts: bool, generator: torch.Generator) -> Inputs:
    g, query, key, value, *_ = form.draw(generator)
    more = [torch.randn(key.shape, generator=generator) if parts else None for _ in range(2)]
    return g, query, key, value, *more


def _dense(form: Form, g, query, key, value, key_part, value_part) -> Tensor:
    """(T, S) by definition."""
    parts = (key if key_part is None else key_part, value if value_part is None else value_part)
    given = form.defined(None) | form.stabilised()
    return reference.attention_edges(g, query, key, value, form.mask(None), *parts, **given)[0]


def _trace(form: Form, impl: str, g, query, key, value) -> ops.Trace:
    leaves, traces = [x.detach().requires_grad_() for x in (query, key, value)], []
    out = form.attend(impl, *leaves, None, None, traces=traces)
    torch.autograd.grad(out, leaves, g, allow_unused=True)
    return traces[0]


def _selected(form: Form, impl: str, chosen: dict, inputs: Inputs):
    """A call that chooses the edges of all queries."""
    *tensors, key_part, value_part = inputs
    trace = _trace(form, impl, *tensors)
    rows = torch.arange(form.queries, device=trace.query.device)
    given = chosen | {"key_part": key_part, "value_part": value_part, "impl": impl}
    return lambda: ops.attention_edges(trace, rows, **given)


def _lists(form: Form, parts: bool) -> Case:
    def prepare(impl, *inputs):
        select = _selected(form, impl, {"topk": _KEPT}, inputs)

        def call():
            """Strengths in order, weights where they lie, sums of the rest; and where they lie."""
            columns, weights, dropped = padded(select(), _KEPT, form.keys)
            return weights.abs().sort(-1).values, weights, dropped, columns

        return call

    def define(found, *inputs):
        matrix, columns = _dense(form, *inputs), found[3]
        strengths = pad(matrix.abs(), (0, _KEPT)).topk(_KEPT).values.flip(-1)
        with_none = pad(matrix, (0, 1))  # column S: where a list has an edge less
        rest = with_none.scatter(1, columns, 0)
        dropped = torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
        return strengths, with_none.gather(1, columns), dropped

    # What is dropped is a sum of sums.
    terms = _terms(form)
    draw, every = partial(_draw, form, parts), (terms, terms, terms * form.keys)
    return Case("edges, lists", form.name, draw, prepare, define, every, slope=partial(_slope, form))


def _tiles(form: Form, parts: bool) -> Case:
    def prepare(impl, *inputs):
        select = _selected(form, impl, {"mass": 1.0}, inputs)  # all of them, which come in tiles
        return lambda: (scattered(select(), form.keys),)

    def define(found, *inputs):
        return (_dense(form, *inputs),)

    draw = partial(_draw, form, parts)
    return Case("edges, tiles", form.name, draw, prepare, define, (_terms(form),), slope=partial(_slope, form))


def _terms(form: Form) -> float:
    """An edge is, summed over heads, a product of P, of u v - u o and of q k: behind it lie four sums of head_dim
    products, and one over the keys in P and one in o."""
    return 4 * form.head_dim + 2 * form.keys + form.heads


def _slope(form: Form, g, query, key, value, *parts) -> float:
    return form.slope(g, query, key, value, None, None)


def _by_mass(n: int) -> Case:
    """The smallest set of given numbers that holds a share of their magnitude."""

    def draw(generator):
        return (torch.randn(n, 3 * n, generator=generator),)

    def prepare(impl, entries):
        entries = entries.float()  # as edges are
        rows, keys = torch.arange(n, device=entries.device), slice(0, 3 * n)

        def call():
            chosen = by_mass(lambda rows: iter([(rows, keys, entries)]), rows, _MASS, None, impl=impl)
            return (scattered(chosen, 3 * n),)

        return call

    def define(found, entries):
        sizes = entries.double().abs().flatten().sort(descending=True).values
        enough = sizes.cumsum(0) >= _MASS * sizes.sum()
        return (torch.where(entries.abs() >= sizes[int(enough.int().argmax())], entries, 0),)

    return Case("edges, choice by mass", f"{n} x {3 * n}", draw, prepare, define, (1,))


def padded(chosen: Selected, k: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns (R, k) int64, ``keys`` where a row has fewer; weights (R, k), there 0; and the dropped sums."""
    rows, place = _places(chosen)
    weights = chosen.weights.new_zeros(len(chosen.counts), k)
    weights[rows, place] = chosen.weights
    columns = torch.full(weights.shape, keys)
    columns[rows, place] = chosen.columns.long()
    return columns, weights, chosen.dropped


def scattered(chosen: Selected, keys: int) -> Tensor:
    """(R, S), 0 where nothing was kept."""
    rows, _ = _places(chosen)
    matrix = chosen.weights.new_zeros(len(chosen.counts), keys)
    matrix[rows, chosen.columns.long()] = chosen.weights
    return matrix


def _places(chosen: Selected) -> tuple[Tensor, Tensor]:
    """The row of each edge, and its place in that row's list."""
    rows = torch.repeat_interleave(torch.arange(len(chosen.counts)), chosen.counts)
    before = chosen.counts.cumsum(0) - chosen.counts
    return rows, torch.arange(len(rows)) - before[rows]
