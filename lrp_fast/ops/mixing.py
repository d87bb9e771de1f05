"""Where tokens meet otherwise than in an attention: a run that leaves what its edges need, and the edges of a layer.

What token j's output of a scan passes to an operand at position t is a number of the two; an operand at t is made of
the layer's input at t and, behind a short convolution, at the few positions before it. Both are linear, so that the
edges of a layer are the sum over its attentions and scans, its operands and these lags, in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Trace
from .attention_bounded import TILE
from .edges import HELD, attention_edges, attention_tiles, crossing
from .once import once
from .select import Selected, Tile, by_mass, by_row

Parts = tuple[Tensor | None, ...]
Form = Callable[..., Callable[[Tensor], Tensor]]


class Mixed(NamedTuple):
    """One backward pass through a scan, as its edges need it."""

    g: Tensor  # (B, T, H, V), the relevance gradient at the output
    given: tuple[Tensor, ...]  # (B, T, ...) each: the values (B, T, H, V) first, then what the scan is made of
    back: Parts  # the relevance gradients that the pass handed back; None where one is a constant
    form: Form  # see `mixed`

    def of(self, prompt: int, start: int, end: int) -> Mixed:
        """That of one prompt of a batch, whose tokens are ``start`` ... ``end`` - 1."""
        g, *rest = (None if t is None else t[prompt : prompt + 1, start:end] for t in (self.g, *self.given, *self.back))
        return Mixed(g, tuple(rest[: len(self.given)]), tuple(rest[len(self.given) :]), self.form)


def mixed(run: Callable[..., Tensor], form: Form, *given: Tensor, traces: list | None = None) -> Tensor:
    """``run(*given)``, with autograd; every backward pass appends a `Mixed` to ``traces``.

    Args:
        run: from ``given``, (B, T, ...) each, values (B, T, H, V) first, to (B, T, H, V). Its gradients obey the rule.
        form: ``form(g, given, back, parts)``, of one prompt each, gives a function of rows (R,), ascending and within
            one block of `TILE`, to what these pass to positions 0 ... the last of them, (R, S) in float32 or wider.
            ``parts``, (lags, T, ...) each or None, say what the layer's input, so many positions before, contributes.
    """
    return run(*given) if traces is None else _Mixed.apply(run, form, traces, *given)


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, form, traces, *given):
        asked = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            ctx.given = [one.detach().requires_grad_(needed) for one, needed in zip(given, asked, strict=True)]
            ctx.out = run(*ctx.given)
        ctx.form, ctx.traces = form, traces
        return ctx.out.detach()

    @staticmethod
    @once
    def backward(ctx, g):
        asked = [one for one in ctx.given if one.requires_grad]
        found = iter(torch.autograd.grad(ctx.out, asked, g, retain_graph=True, materialize_grads=True))
        back = tuple(next(found) if one.requires_grad else None for one in ctx.given)
        ctx.traces.append(Mixed(g, tuple(one.detach() for one in ctx.given), back, ctx.form))
        return None, None, None, *back


class Mixing(NamedTuple):
    """An attention or a scan of a layer, with what the layer's input contributes to it."""

    trace: Trace | Mixed
    parts: Parts  # of keys and values, (B, H_kv, T, D); or of all that a scan is given, (lags, B, T, ...)

    def of(self, prompt: int, length: int) -> Mixing:
        """That of one prompt of a batch, of so many tokens."""
        axis = 0 if isinstance(self.trace, Trace) else 1
        parts = (None if t is None else t.narrow(axis, prompt, 1).narrow(2, 0, length) for t in self.parts)
        return Mixing(self.trace.of(prompt, 0, length), tuple(parts))


def layer_edges(
    mixings: list[Mixing],
    rows: Tensor,
    *,
    topk: int | None = None,
    mass: float | None = None,
    own: Tensor | None = None,
) -> Selected:
    """The strongest edges of a decoder layer whose tokens meet in these places, none of which reads another's output.

    Args, returns: as `attention_edges`, which computes them where there is one attention alone.
    """
    if len(mixings) == 1 and isinstance(mixings[0].trace, Trace):
        ((trace, (key_part, value_part)),) = mixings
        parts = {"key_part": key_part, "value_part": value_part}
        return attention_edges(trace, rows, **parts, topk=topk, mass=mass, own=own)
    if (topk is None) == (mass is None):
        raise ValueError("give one of topk= and mass=")
    computed = partial(_tiles, [_computed(one) for one in mixings])
    return by_row(computed(rows), topk) if mass is None else by_mass(computed, rows, mass, own, HELD)


def layer_crossing(mixings: list[Mixing]) -> Tensor:
    """(S,) relevance that arrives at every position through what they mix: the column sums of all edges."""
    return sum(_crossing(*one) for one in mixings)


def reached_rows(mixings: list[Mixing]) -> Tensor:
    """(T,) bool: the tokens at whose outputs any relevance gradient is not 0."""
    found = [one.g[0].any(-1).any(0 if isinstance(one, Trace) else -1) for one, _ in mixings]
    return torch.stack(found).any(0)


def shifted(edges: Tensor, lag: int, into: Tensor, start: int = 0) -> None:
    """Add what rows pass to operands at ``start`` and behind (R, S), which the input made so many positions before."""
    cut = max(lag - start, 0)
    if cut < edges.shape[1]:
        into[:, start + cut - lag : start + edges.shape[1] - lag] += edges[:, cut:]


def on_diagonal(entries: Tensor, rows: Tensor, lag: int, into: Tensor) -> None:
    """Add what rows (R,) pass to what lies so many positions before each."""
    there = rows >= lag
    into[torch.arange(len(rows), device=rows.device)[there], (rows - lag)[there]] += entries[there]


def _crossing(trace: Trace | Mixed, parts: Parts) -> Tensor:
    if isinstance(trace, Trace):
        return crossing(trace, *parts)
    wide = torch.promote_types(trace.g.dtype, torch.float32)
    found = torch.zeros(trace.g.shape[1], dtype=wide, device=trace.g.device)
    for g, part in zip(trace.back, parts, strict=True):
        for lag, of_lag in enumerate(() if g is None else part):
            arrived = (g[0].to(wide) * of_lag[0].to(wide)).flatten(1).sum(-1)
            found[: len(found) - lag] += arrived[lag:]
    return found


def _computed(one: Mixing) -> Callable[[Tensor], Iterator[Tile]]:
    trace, parts = one
    if isinstance(trace, Trace):
        # The core would lay out all keys anew for each of the few rows at a time that are asked for here.
        return partial(attention_tiles, trace, *parts, "torch")
    given, back = (tuple(None if t is None else t[0] for t in these) for these in (trace.given, trace.back))
    edges = trace.form(trace.g[0], given, back, tuple(None if t is None else t[:, 0] for t in parts))
    return lambda rows: [(rows, slice(0, int(rows[-1]) + 1), edges(rows))]


def _tiles(computed: list[Callable[[Tensor], Iterator[Tile]]], rows: Tensor) -> Iterator[Tile]:
    """The sums of what all of them compute, rows of one block at a time."""
    for block in (rows // TILE).unique().tolist():
        these = rows[rows // TILE == block]
        end, sums = int(these[-1]) + 1, None
        for one in computed:
            at = 0
            for position, keys, entries in one(these):
                if sums is None:
                    sums = entries.new_zeros(len(these), end)
                sums[at : at + len(position), keys] += entries
                at += len(position)
        yield these, slice(0, end), sums
