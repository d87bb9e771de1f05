"""What passes within a decoder layer, summed by hooks of tensors while its backward pass runs.

The hooks hang on views: a view's gradient is that of one use of a tensor, and no number of the pass hangs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from . import experts, handlers
from .families import MIXTURES, branch_dtype, handled, handler_of, last_linear, mlps, moves_tokens
from .overlay import forward_name, forward_of, laid
from .spelt_out_attention import biases_scores
from .state_space import STATE_SPACES
from .weights import own_dtype, shape


class HeadSums(NamedTuple):
    """Relevance at one layer's attention, x * g summed over positions and features."""

    output: Tensor  # (H,) what arrives at each head's output, before the attention's own stabilisers
    query: Tensor  # (H,) of that, what goes on by the queries
    key: Tensor  # (H_kv,) by the keys, as rotated
    value: Tensor  # (H_kv,) by the values


class Sums:
    """What is summed up in one decoder layer, a target after another."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted  # of "heads" and "neurons"
        self._blank: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._done: list[dict[str, Tensor]] = []

    def expect(self, name: str, size: int, dtype: torch.dtype) -> None:
        """The sums of a target by whose backward pass nothing comes are zeros."""
        self._blank[name] = torch.zeros(size, dtype=torch.promote_types(dtype, torch.float32), device="cpu")

    def followed(self, name: str, x: Tensor, added: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``x``, of which ``added(x, g)`` is summed up in every backward pass."""
        if not x.requires_grad:
            return x
        x = x.view_as(x)
        known = x.detach()

        def add(g: Tensor | None) -> None:
            if g is None:  # of a constant under cp
                return
            with torch.no_grad():
                part = added(known, g)
                self._sums[name] = self._sums[name] + part if name in self._sums else part

        x.register_hook(add)
        return x

    def turn(self) -> None:
        """One target's backward pass is done."""
        self._done.append(self._blank | self._sums)
        self._sums = {}

    def of(self, target: int, raised: float) -> tuple[HeadSums | None, Tensor | None]:
        """At the heads and, (F,), at the neurons, of a pass whose gradients were multiplied by ``raised``."""
        found = {name: part.cpu() / raised for name, part in self._done[target].items()}
        heads = HeadSums(*(found[name] for name in HeadSums._fields)) if "heads" in self.wanted else None
        return heads, found.get("neurons")


@contextmanager
def summing(layer: nn.Module, sums: Sums) -> Iterator[None]:
    """While ``layer`` of a patched model runs with autograd, or again: what its backward passes carry goes to ``sums``.

    Within `replaying` and `attending`, whose overlays this one calls.
    """
    overlays = []
    if "heads" in sums.wanted:
        (attention,) = attentions(layer)
        overlays.append((attention, "lrp_fast_attend", _attend(attention, sums)))
    if "neurons" in sums.wanted:
        last = last_linear(mlps(layer)[0])
        sums.expect("neurons", shape(last)[1], own_dtype(last) or branch_dtype(layer))
        overlays.append((last, forward_name(last), _of_neurons(last, sums)))
    with laid(overlays):
        yield


def why_no_heads(layer: nn.Module) -> str | None:
    """Why a layer has no heads that are the same for all tokens, if it has none."""
    found = attentions(layer)
    if len(found) != 1:
        return f"it holds {len(found) or 'no'} softmax attention{'s' * (len(found) > 1)}, and heads are those of one"
    if handler_of(found[0]) is handlers.mixture_of_attentions:
        return f"the router of {type(found[0]).__name__} gives each token heads of its own"
    return None


def beside_attention(layer: nn.Module) -> nn.Module | None:
    """Where tokens meet in a layer but for its softmax attentions, if they do anywhere."""
    held = handled(layer)
    return next((one for _, one, handler in held if handler in STATE_SPACES or moves_tokens(one)), None)


def why_no_parts(layer: nn.Module) -> str | None:
    """Why what crosses positions in a layer is not what its heads pass by queries, keys and values, if it is not."""
    if (why := why_no_heads(layer)) is not None:
        return why
    if (other := beside_attention(layer)) is not None:
        return f"tokens meet in its {type(other).__name__} as well, and heads are those of softmax attention"
    (attention,) = attentions(layer)
    if biases_scores(attention, handler_of(attention)):
        return f"{type(attention).__name__} adds biases to its scores (ALiBi), which keys and queries carry here"
    return None


def why_no_neurons(layer: nn.Module) -> str | None:
    """Why a layer has no neurons that are the same for all tokens, if it has none."""
    found = mlps(layer)
    mixed = [one for one in found if handler_of(one) in MIXTURES]
    mixed += [module for _, module, handler in handled(layer) if handler in experts.EXPERTS]
    if mixed:
        return f"it holds experts ({type(mixed[0]).__name__}), whose neurons are not the same for all tokens"
    if len(found) != 1:
        count = f"{len(found) or 'no'} MLP{'s' * (len(found) > 1)}"
        return f"it holds {count} of a known form, and neurons are those of one"
    if last_linear(found[0]) is None:
        return f"no linear map is known to make what {type(found[0]).__name__} puts out"
    return None


def attentions(layer: nn.Module) -> list[nn.Module]:
    return [module for _, module, handler in handled(layer) if handler in handlers.ATTENTIONS]


def _attend(attention: nn.Module, sums: Sums) -> Callable[..., Tensor]:
    under = getattr(attention, "lrp_fast_attend", ops.attention)

    def attend(query, key, value, **given):
        for name, x in (("output", query), ("query", query), ("key", key), ("value", value)):
            sums.expect(name, x.shape[1], x.dtype)
        query, key, value = (
            sums.followed(name, x, _by_head) for name, x in (("query", query), ("key", key), ("value", value))
        )
        return sums.followed("output", under(query, key, value, **given), _by_head)

    return attend


def _of_neurons(last: nn.Module, sums: Sums) -> Callable[[Tensor], Tensor]:
    under = forward_of(last)
    return lambda x: under(sums.followed("neurons", x, _by_feature))


def _by_head(x: Tensor, g: Tensor) -> Tensor:
    """(B, H, T, D) -> (H,)"""
    return ops.node_relevance(x, g).sum((0, 2))


def _by_feature(x: Tensor, g: Tensor) -> Tensor:
    """(..., T, F) -> (F,)"""
    wide = torch.promote_types(torch.promote_types(x.dtype, g.dtype), torch.float32)
    return torch.linalg.vecdot(x.to(wide).flatten(0, -2), g.to(wide).flatten(0, -2), dim=0)
