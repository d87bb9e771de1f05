"""Handlers of linear maps, x W^T + b, quantised and with adapters too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .. import ops
from ..rules import Rules
from .glue import dropout
from .hooks import check_unhooked
from .overlay import Overlay, forward_of, laid
from .walk import modules_of
from .weights import bias, is_plain, matrix, rows

_SKIPS = "lrp_fast_skips"  # of a linear map: few of its outputs carry relevance


@contextmanager
def skipping(*parts: nn.Module) -> Iterator[None]:
    """Within the block, the linear maps of these parts look for tokens, and logits, that carry no relevance: the last
    layer's, above whose attention those do alone whose logits are explained, and the head's."""
    maps = dict.fromkeys(module for part in parts for module in modules_of(part) if hasattr(module, "weight"))
    with laid((module, _SKIPS, True) for module in maps):
        yield


def linear(module: nn.Module, rules: Rules) -> Overlay:
    own, stabilisers = forward_of(module), {"epsilon": rules.epsilon, "gamma": rules.gamma}
    own_entries = module.__dict__  # not getattr, which takes long where nothing is laid: a pass asks hundreds of times

    def forward(input):
        if "lrp_fast_dtype" in own_entries:  # while a layer is replayed
            input = input.to(own_entries["lrp_fast_dtype"])
        if is_plain(module):
            return ops.linear(input, matrix(module), module.bias, **stabilisers, skip=_SKIPS in own_entries)
        with torch.no_grad():  # first: it may pack its weights anew
            # .data: LLM.int8 takes outliers out of what it is given, and puts them back; autograd is not to mind.
            z = own(input.data)
        return ops.linear_by_rows(input, z, rows(module), bias(module), **stabilisers)

    return {"forward": forward}


def adapted_linear(module: nn.Module, rules: Rules) -> Overlay:
    """peft's LoRA, as the one linear map that base layer and adapters are together."""
    for part in module.lora_dropout.values():
        if isinstance(part, nn.Dropout):
            dropout(part, rules)
    for part in modules_of(module)[1:]:
        check_unhooked(part, "a part of a linear map with adapters")
    return linear(module, rules)


LINEARS = (linear, adapted_linear)


def adapted_embedding(module: nn.Module, rules: Rules) -> Overlay:
    """As `leave`, its parts, which have no handlers, included."""
    return {}


WHOLE = (adapted_linear, adapted_embedding)  # their parts are none of anybody's business
