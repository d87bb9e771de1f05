"""The logit lens (nostalgebraist 2020): what the model would answer if a layer were its last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..hf import decoding, reads_all_tokens
from ..watch import Seen
from .room import Observer, Pass, places


class Scores(NamedTuple):
    """What the final norm and head make of the hidden states at P positions, on the CPU.

    Attributes:
        positions: P positions.
        scores: (L + 1, P) of the target's logit less the contrast: the tokens are those that are explained, in all
            layers; float32, float64 of a float64 model. Those of the explained positions at layer L add up
            to ``result.value``, but for rounding.
        commitment: (P,) int64, the commitment layer of each: the lowest layer l such that the scores of all layers
            l ... L have one sign (+, - or 0). It is L where the sign changes in the last layer.
    """

    positions: list[int]
    scores: Tensor
    commitment: Tensor


@dataclass(frozen=True)
class LogitLens(Observer):
    """The score of what is explained at every layer: `Scores`.

    The model's own code behind its layers is run on the hidden states of each layer at ``positions``, once the pass is
    over: final norm, head, scales and caps. Those of a contrast by ("top", k) are the k best tokens of the last layer,
    everywhere. ``positions`` are those that are explained by default. Another one is scored by the tokens of the
    explained one, of which there must be one alone then.
    """

    positions: Sequence[int] | None = None
    weighs_logits = True

    def needs(self, of: Pass) -> list[frozenset[str]]:
        if not of.linear:
            raise ValueError(
                "LogitLens scores logits and their differences, and a log-probability or a function of the logits is "
                "explained: leave it out, or explain the logit"
            )
        if reads_all_tokens(of.model):
            raise ValueError(
                f"LogitLens reads hidden states one by one, and {type(of.model).__name__} classifies by a mean over "
                "all tokens: leave it out"
            )
        for one in self._places(of.positions, of.length):
            if one not in of.positions and len(of.positions) > 1:
                raise ValueError(
                    f"LogitLens is to look at position {one}, and {len(of.positions)} others are explained, each by "
                    "tokens of its own: leave its positions out, or explain one position"
                )
        return super().needs(of)

    def __call__(self, seen: Seen) -> Tensor:
        return seen.hidden[self._places(seen.positions, len(seen.hidden))]

    def table(self, kept: list, of: Pass, target: int) -> Scores:
        positions = self._places(of.positions, of.length)
        weights, scores = of.weights[target], []
        if positions != of.positions:
            weights = weights[[of.positions.index(one) if len(weights) > 1 else 0 for one in positions]]
        with decoding(of.model, of.rules) as logits:
            for hidden in kept:
                scores.append((logits(hidden.to(kept[-1].device)).to(weights) * weights).sum(-1).cpu())
        scores = torch.stack(scores)
        return Scores(positions, scores, commitment(scores))

    def _places(self, explained: list[int], length: int) -> list[int]:
        return explained if self.positions is None else places(self.positions, "positions of LogitLens", length)


def commitment(scores: Tensor) -> Tensor:
    """(L + 1, P) -> (P,) as in `Scores`."""
    signs = scores.sign()
    settled = (signs == signs[-1]).flip(0).cumprod(0).sum(0)  # layers from the last down
    return len(scores) - settled
