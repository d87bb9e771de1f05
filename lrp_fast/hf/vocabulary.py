"""The rows of the language model's head, one a token."""

from __future__ import annotations

import torch
from torch import nn

from .walk import modules_of
from .weights import bias, is_offloaded, rows, shape

_TOGETHER = 32  # quantised rows may be kept in groups of so many


def vocabulary_size(model: nn.Module) -> int:
    """How many logits a position has."""
    return shape(model.get_output_embeddings())[0]


def share_a_row(model: nn.Module, one: int, other: int) -> bool:
    """Whether the head is known to make the same logit of two tokens, whatever it reads."""
    head = model.get_output_embeddings()
    if any(map(is_offloaded, modules_of(head))):  # its weights are not there
        return False
    added = bias(head)
    with torch.no_grad():
        return torch.equal(_row(head, one), _row(head, other)) and (added is None or bool(added[one] == added[other]))


def _row(head: nn.Module, token: int) -> torch.Tensor:
    start = token - token % _TOGETHER
    return rows(head)(start, min(start + _TOGETHER, shape(head)[0]))[token - start]
