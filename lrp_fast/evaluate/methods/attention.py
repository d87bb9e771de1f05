"""Attention weights taken for an explanation. They know neither the target nor the contrast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...hf import attention_matrices
from ...question import Question


@dataclass(frozen=True)
class LastAttention:
    """How much the explained position reads of each token in the last layer, on average over its heads."""

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        return attention_matrices(model, input_ids)[-1][question.positions].mean(0)


@dataclass(frozen=True)
class Rollout:
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928): the explained position's row of the product of
    all layers' (A + I) / 2, A the mean of the heads, which stands for the residual stream beside the attention."""

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        matrices = attention_matrices(model, input_ids)
        row = torch.zeros(len(input_ids), dtype=matrices[0].dtype)
        row[question.positions] = 1 / len(question.positions)
        for matrix in reversed(matrices):
            row = (row @ matrix + row) / 2
        return row
