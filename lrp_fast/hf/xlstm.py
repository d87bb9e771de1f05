"""xLSTM's models (Beck et al. 2025, arXiv 2503.13427), which run all tokens at once here."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from torch import nn

from ..rules import Rules
from .caps import language_model_with_cap
from .overlay import Overlay, forward_of, laid, told


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
        with laid([told(module, max_inference_chunksize=sys.maxsize)]):
            return own(*args, **named)

    return forward
