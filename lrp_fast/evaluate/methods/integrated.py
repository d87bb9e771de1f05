"""Integrated gradients (Sundararajan et al., ICML 2017, arXiv 1703.01365)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...hf import keeping_rotations, logits_behind, owned
from ...question import Question
from ..perturb import Prompt
from ..readings import reader

_TOKENS = 1024  # of the points of a path that are differentiated at once


@dataclass(frozen=True)
class IntegratedGradients:
    """sum_d e_d 1/m sum_k df/de_d ((k - 1/2) / m e), k = 1 ... m: the integral of the gradient of the preference f
    along the straight path to a prompt's embeddings e from zeros, as the sum of its middles.

    The baseline is zero, for every token; to f(e) - f(0) the scores add up but for the error of the sum, which is large
    where norms make f change most next to zero.

    Attributes:
        steps: m, points of the path; each costs a forward and a backward pass.
    """

    steps: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, not {self.steps}")

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        prompt = Prompt(model, input_ids, question.tokenizer)
        embedded = prompt.embedded
        everything = torch.ones(1, len(embedded), dtype=torch.bool)
        whole = prompt.read(everything, "zero", lambda logits: logits)[0].float()
        preference = reader(question.requests[0], whole)
        wide = torch.promote_types(embedded.dtype, torch.float32)
        total = torch.zeros_like(embedded, dtype=wide)
        points = (torch.arange(self.steps, dtype=wide) + 0.5) / self.steps
        with torch.inference_mode(False), torch.enable_grad(), owned(model, passing=True), keeping_rotations(model):
            for part in points.to(embedded).split(max(1, _TOKENS // len(embedded))):
                path = (part[:, None, None] * embedded).requires_grad_()
                logits = logits_behind(model, list(path))
                found = preference(logits.to(torch.promote_types(logits.dtype, torch.float32)))[:, 0]
                total += torch.autograd.grad(found.sum(), path)[0].sum(0)
        return (embedded * total / self.steps).sum(-1)
