"""Leave one out: each token's score is what becomes of the preference without it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...question import Question
from ..perturb import Prompt
from ..readings import reader
from ..units import units_of


@dataclass(frozen=True)
class LeaveOneOut:
    """By how much the preference falls without a token; special ones, which always stay, have 0.

    Attributes:
        replacement: what stands in for it, of `lrp_fast.evaluate.REPLACEMENTS`.
        units: what is left out together, as of `lrp_fast.evaluate`; its tokens share the fall.
    """

    replacement: str = "zero"
    units: str | int = "tokens"

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        length = len(input_ids)
        spans = units_of(self.units, length, question.special or [False] * length, question.tokens)
        prompt = Prompt(model, input_ids, question.tokenizer)
        keep = torch.ones(len(spans) + 1, length, dtype=torch.bool)
        for row, (start, end) in enumerate(spans, 1):
            keep[row, start:end] = False
        whole = prompt.read(keep[:1], self.replacement, lambda logits: logits)[0].float()
        said = prompt.read(keep, self.replacement, reader(question.requests[0], whole))[:, 0]
        scores = torch.zeros(length, dtype=torch.float64)
        for (start, end), fall in zip(spans, (said[0] - said[1:]).tolist(), strict=True):
            scores[start:end] = fall / (end - start)
        return scores
