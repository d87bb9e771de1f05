"""xLSTM's parts (Beck et al. 2025, arXiv 2503.13427): its matrix memory, and a model that runs all tokens at once."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable

import torch
from torch import nn

from .. import ops
from ..rules import Rules
from .caps import language_model_with_cap
from .handlers import Overlay
from .overlay import forward_of, laid


def matrix_memory(module: nn.Module, rules: Rules) -> Overlay:
    """`ops.mlstm`, in every mode of the module."""
    if rules.epsilon or rules.gamma:
        name = type(module).__name__
        raise ValueError(f"{name} is linear attention, for which lrp_fast has no epsilon and gamma rule: leave both 0")

    def forward(query, key, value, igate, fgate, c_initial=None, **_):
        if c_initial is not None:
            raise ValueError(f"{type(module).__name__} is to keep its state in a cache: call with use_cache=False")
        with torch._C.DisableTorchFunction():  # its products have shares of their own
            found = ops.mlstm(query, key, value, igate, fgate, eps=module.config.eps, rule=rules)
        return found.to(value.dtype), None

    return {"forward": forward}


def whole_model(module: nn.Module, rules: Rules) -> Overlay:
    """A model that runs long prompts some tokens at a time through all of its layers, without gradients: not so here,
    as its layers keep to what memory there is by themselves."""
    return {"forward": _at_once(module, forward_of(module))}


def whole_language_model(module: nn.Module, rules: Rules) -> Overlay:
    """As `whole_model`, with a cap on its logits."""
    return {"forward": _at_once(module, language_model_with_cap(module, rules)["forward"])}


def _at_once(module: nn.Module, own: Callable) -> Callable:
    @functools.wraps(own)
    def forward(*args, **named):
        config = copy.copy(module.config)
        config.max_inference_chunksize = sys.maxsize
        with laid([(module, "config", config)]):
            return own(*args, **named)

    return forward
