"""One decoder layer of a patched model, run twice: without autograd, then again for its backward pass.

The first run (`recording`) hands out what the attention computed and which experts a token went to. The second
(`replaying`) takes both back, so that nothing of size N x N is computed twice and no token goes another way, and skips
what no backward pass reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import Kept
from ..rules import Rules
from . import experts, handlers, weights
from .families import branch_dtype, handled, handler_of, last_linear, mlps, splits
from .functions import Choices
from .hooks import is_watched
from .overlay import forward_name, forward_of, laid
from .state_space import SCANS
from .threads import acting_for, here


class Recorded(NamedTuple):
    """What a layer's first run leaves for its second."""

    attention: list[Kept]  # one an attention
    experts: list[Tensor]  # one a router: (N, k) int16, its `Choices`

    def each(self, do: Callable) -> Recorded:
        """The same with ``do(tensor)`` in place of every tensor."""
        attention = [Kept(*(None if one is None else do(one) for one in kept)) for kept in self.attention]
        return Recorded(attention, [do(one) for one in self.experts])


@contextmanager
def recording(layer: nn.Module, rows: int) -> Iterator[Recorded]:
    """While ``layer`` runs for the first time, its MLP, if it `splits`, on ``rows`` tokens at a time.

    It need not run with autograd. Where it does, for the sake of hooks that ask tensors for their gradients, no number
    comes of that. What it yields is whole on exit.
    """
    found = Recorded([], [])

    def attend(query, key, value, **given):
        found.attention.append(ops.attention_forward(query, key, value, **given))
        return _cut(found.attention[-1].out)

    choices = [(router, "lrp_fast_choices", Choices()) for router in _handled(layer, *experts.ROUTERS)]
    overlays = [*_attend(layer, attend), *choices]
    overlays += [(mlp, forward_name(mlp), _in_parts(mlp, rows)) for mlp in _unwatched_mlps(layer) if splits(mlp)]
    with laid(overlays):
        yield found
    found.experts.extend(noting.noted() for _, _, noting in choices)


@contextmanager
def attending(
    part: nn.Module,
    traces: list[list] | None = None,
    tolerance: float = 0.0,
    dropped: list[Tensor] | None = None,
    refusal: str | None = None,
) -> Iterator[None]:
    """While ``part`` of a patched model, or all of it, runs with autograd: what `ops.attention` and `ops.mixed` are
    given for the backward pass of its attentions and scans; each call gets a list of ``traces`` for its own.
    ``refusal`` is for `laid`."""

    def attend(*given, **named):
        return ops.attention(*given, **named, traces=_one_more(traces), tolerance=tolerance, dropped=dropped)

    with laid(_attend(part, attend) + _mix(part, traces), refusal):
        yield


def _one_more(traces: list[list] | None) -> list | None:
    if traces is None:
        return None
    traces.append([])
    return traces[-1]


def _mix(part: nn.Module, traces: list[list] | None) -> list[tuple[nn.Module, str, object]]:
    def mix(*given):
        return ops.mixed(*given, traces=_one_more(traces))

    return [(module, "lrp_fast_mix", mix) for module in _handled(part, *SCANS)]


@contextmanager
def replaying(
    layer: nn.Module,
    rules: Rules,
    recorded: Recorded,
    rows: int,
    traces: list[list] | None = None,
    tolerance: float = 0.0,
    dropped: list[Tensor] | None = None,
) -> Iterator[None]:
    """While ``layer`` runs again with autograd, on float32 or wider hidden states.

    The residual stream stays that wide, and so does the relevance gradient on it; the layer's branches compute in the
    dtype of its weights, or of its norms where the weights have none. Tokens keep the experts of the first run, in
    which scores rounded otherwise. Where the MLP's output is only added to the residual stream, it is left out: it
    comes back as NaN. ``traces``, ``tolerance`` and ``dropped`` are as in `attending`.
    """
    remaining = iter(recorded.attention)
    # A hook on the layer may read its output.
    unread = handler_of(layer) is handlers.pre_norm_decoder_layer and not is_watched(layer)

    def attend(query, key, value, **given):
        bounded = {"traces": _one_more(traces), "tolerance": tolerance, "dropped": dropped}
        return ops.attention(query, key, value, **given, kept=next(remaining), **bounded)

    overlays = _attend(layer, attend) + _mix(layer, traces)
    for router, chosen in zip(_handled(layer, *experts.ROUTERS), recorded.experts, strict=True):
        overlays.append((router, "lrp_fast_choices", Choices(chosen)))
    for module in _handled(layer, *handlers.LINEARS, *handlers.NORMS):
        overlays.append((module, "lrp_fast_dtype", weights.own_dtype(module) or branch_dtype(layer)))
    for mlp in _unwatched_mlps(layer):
        last = last_linear(mlp)
        if unread and last is not None and not (rules.epsilon or rules.gamma):
            overlays.append((last, forward_name(last), _transposed(last)))
        if splits(mlp):
            overlays.append((mlp, forward_name(mlp), _checkpointed(mlp, rows, unread)))
    with laid(overlays):
        yield


def _cut(x: Tensor) -> Tensor:
    """``x`` as what follows would find it if autograd had seen how it was made; a copy, that Falcon may add to."""
    return x.detach().requires_grad_().clone() if torch.is_grad_enabled() else x


def _handled(layer: nn.Module, *by: handlers.Handler) -> list[nn.Module]:
    return [module for _, module, handler in handled(layer) if handler in by]


def _unwatched_mlps(layer: nn.Module) -> list[nn.Module]:
    """Those without anybody's hooks: a hook may want all tokens, and the output."""
    return [mlp for mlp in mlps(layer) if not is_watched(mlp)]


def _attend(layer: nn.Module, attend: Callable) -> list[tuple[nn.Module, str, object]]:
    return [(module, "lrp_fast_attend", attend) for module in _handled(layer, *handlers.ATTENTIONS)]


def _transposed(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    if weights.is_plain(linear):
        return lambda x: ops.linear_unread(x, weights.matrix(linear))
    nan = torch.tensor(torch.nan)

    def forward(x):
        z = nan.to(x).expand(*x.shape[:-1], weights.shape(linear)[0])
        return ops.linear_by_rows(x, z, weights.rows(linear))

    return forward


def _in_parts(mlp: nn.Module, rows: int) -> Callable[[Tensor], Tensor]:
    """The forward pass that computes ``rows`` tokens of (B, N, D) at a time: no other token matters to one."""
    whole, again = _alone(mlp)

    def forward(x):
        with torch.no_grad():
            tokens = x.reshape(1, -1, x.shape[-1])
            out = torch.empty_like(tokens)
            for part, out_part in zip(tokens.split(rows, 1), out.split(rows, 1), strict=True):
                out_part.copy_(whole(part))
        return again(_cut(out.view(x.shape)))

    return forward


def _checkpointed(mlp: nn.Module, rows: int, unread: bool) -> Callable[[Tensor], Tensor]:
    whole, again = _alone(mlp)
    routers = _handled(mlp, *experts.ROUTERS)

    def part(x, start):
        of_these = slice(start, start + x.shape[1])
        with laid([(router, "lrp_fast_choices", router.lrp_fast_choices[of_these]) for router in routers]):
            return whole(x)

    def forward(x):
        if x.shape[:-1].numel() <= rows:
            return again(whole(x))
        return again(_Checkpointed.apply(x.reshape(1, -1, x.shape[-1]), part, rows, unread).view(x.shape))

    return forward


def _alone(mlp: nn.Module) -> tuple[Callable, Callable]:
    """The MLP's forward pass without what nobody needs of it, and what makes its layer content with the result."""
    whole = forward_of(mlp)
    if handler_of(mlp) in experts.PAIRED:
        return lambda x: whole(x)[0], lambda out: (out, None)
    return whole, lambda out: out


class _Checkpointed(torch.autograd.Function):
    """An MLP whose inside exists for ``rows`` tokens at a time, and whose output only where it is read."""

    @staticmethod
    def forward(ctx, x, part, rows, unread):
        ctx.part, ctx.rows, ctx.thread = part, rows, here()
        ctx.save_for_backward(x)
        if unread:
            return x.new_full((), torch.nan).expand(x.shape)
        return torch.cat([part(x[:, start : start + rows], start) for start in range(0, x.shape[1], rows)], 1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        g_in = torch.zeros_like(x)
        for start in range(0, x.shape[1], ctx.rows):
            x_part, g_part, g_in_part = (t[:, start : start + ctx.rows] for t in (x, g, g_in))
            if not g_part.any():
                continue  # above the last attention most carry no relevance: worth a look, on CUDA too
            with torch.enable_grad(), acting_for(ctx.thread):  # on CUDA, this is a thread of autograd's
                leaf = x_part.detach().requires_grad_()
                g_in_part.copy_(torch.autograd.grad(ctx.part(leaf, start), leaf, g_part)[0])
        return g_in, None, None, None
