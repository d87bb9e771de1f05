"""The language model's head: its rows, one a token, and which hidden states it reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .threads import here
from .walk import modules_of, without_adapters
from .weights import bias, is_offloaded, rows, shape

_TOGETHER = 32  # quantised rows may be kept in groups of so many


def vocabulary_size(model: nn.Module) -> int:
    """How many logits a position has."""
    return shape(model.get_output_embeddings())[0]


def keeps_logits(model: nn.Module) -> bool:
    """Whether a model knows what ``logits_to_keep`` means; some hand it on to their attention."""
    return "logits_to_keep" in inspect.signature(without_adapters(model).forward).parameters


@contextmanager
def head_reads(model: nn.Module, places: list[int]) -> Iterator[None]:
    """Within the block, this thread's run of ``model`` has logits (1, P, V), at these ``places`` of its B N hidden
    states alone: transformers' logits_to_keep means the same ones in every row."""
    thread = here()

    def choose(head, given: tuple[Tensor]):
        return (given[0].flatten(0, 1)[places][None],) if here() is thread else None

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


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
