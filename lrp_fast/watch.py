"""What a pass shows to observers on its way down, a layer and target at a time (`lrp_fast.observers`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .hf import HeadSums, Sums


class Seen(NamedTuple):
    """One layer of nodes, and one target's relevance gradient there. An observer gets it for every layer, the last one
    first: ``observer(seen)``.

    Layer 0 is the embeddings, layer l what decoder layer l - 1 puts out, as everywhere. The tensors lie on the layer's
    device and are the pass's own: an observer copies what it keeps or changes.

    Attributes:
        layer: from L down to 0.
        target: which of the targets, from 0; each is told of a layer in turn.
        positions: whose logits are explained, 0 ... N - 1.
        hidden: (N, D) hidden states, in the model's dtype; (N, S, D) where it has several residual streams.
        gradient: as ``hidden``, the relevance gradient, in float32, float64 of a float64 model.
        relevance: (N,) relevance of the nodes, in the gradient's dtype: the result's ``layers[layer]``.
        hidden_above, gradient_above, relevance_above: those of layer ``layer + 1``; None at layer L.
        heads: relevance at the heads of decoder layer ``layer``, which lies between the two, on the CPU; for `Heads`.
        neurons: (F,) relevance at the neurons of its MLP, summed over positions; for `Neurons`.
    """

    layer: int
    target: int
    positions: list[int]
    hidden: Tensor
    gradient: Tensor
    relevance: Tensor
    hidden_above: Tensor | None = None
    gradient_above: Tensor | None = None
    relevance_above: Tensor | None = None
    heads: HeadSums | None = None
    neurons: Tensor | None = None


class Watch:
    """Shows a pass of one prompt to ``tell``.

    Args:
        wanted: for each decoder layer, what is to be summed up within it ("heads", "neurons").
    """

    def __init__(self, wanted: list[frozenset[str]], positions: list[int], tell: Callable[[Seen], None]) -> None:
        self.wanted, self._positions, self._tell = wanted, positions, tell
        self._above: list[tuple[Tensor, ...]] | None = None

    def show(
        self, layer: int, x: Tensor, gs: list[Tensor], nodes: list[Tensor], sums: Sums | None, raised: list[Tensor]
    ) -> None:
        """A layer's nodes: hidden states (1, N, D), and a target each its relevance gradient and relevance (1, N);
        ``sums`` and what gradients were multiplied by are those of the decoder layer above them."""
        hidden = x.detach()[0]
        # A float16 model's gradients are raised where they lie.
        own = [g[0].clone() if x.dtype == torch.float16 else g[0] for g in gs]
        these = [(hidden, g, one[0]) for g, one in zip(own, nodes, strict=True)]
        for target, these_of in enumerate(these):
            above = (None, None, None) if self._above is None else self._above[target]
            within = (None, None) if sums is None else sums.of(target, raised[target].item() if raised else 1.0)
            seen = Seen(layer, target, [*self._positions], *these_of, *above, *within)
            heads, neurons = within
            shown = [one for one in (*these_of, *above, *(heads or ()), neurons) if one is not None]
            before = [_version(one) for one in shown]
            with torch.no_grad():
                self._tell(seen)
            if [_version(one) for one in shown] != before:
                raise ValueError(
                    f"an observer has written into what it was shown of layer {layer}, which is not its own: "
                    "let it copy what it changes"
                )
        self._above = these


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
