"""Handlers of a soft-cap on logits, c tanh(s / c)."""

from __future__ import annotations

import functools
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from .. import ops
from ..rules import Rules
from .functions import by_rule
from .overlay import Overlay, forward_name, forward_of, laid, told


def capped_language_model(module: nn.Module, rules: Rules) -> Overlay:
    """A model with a soft-cap on its logits, c tanh(s / c), which passes relevance by the identity rule, cap(s) / s.

    It caps within its forward pass, behind the head. Here the head caps, and the model is told that nothing is left.
    """
    cap = module.config.final_logit_softcapping
    if cap is None:
        return {}
    own = forward_of(module)

    @functools.wraps(own)
    def forward(*args, **named):
        head = module.get_output_embeddings()
        whole = forward_of(head)
        capped = (head, forward_name(head), lambda x: soft_capped(whole(x), cap, rules))
        with laid([capped, told(module, final_logit_softcapping=None)]):
            return own(*args, **named)

    return {"forward": forward}


def language_model_with_cap(module: nn.Module, rules: Rules) -> Overlay:
    """As `capped_language_model`, whatever its config calls the cap: what its code does behind the head obeys
    the rules, and the cap passes relevance by cap(s) / s."""
    own = forward_of(module)

    @functools.wraps(own)
    def forward(*args, **named):
        head = module.get_output_embeddings()
        whole, treated = forward_of(head), ExitStack()

        def then(x):
            scores = whole(x)
            treated.enter_context(by_rule(module, rules))
            return scores

        with treated, laid([(head, forward_name(head), then)]):
            return own(*args, **named)

    return {"forward": forward}


def soft_capped(scores: Tensor, cap: float, rules: Rules) -> Tensor:
    if not rules.treatment.ratio:
        return torch.tanh(scores / cap) * cap
    with torch.no_grad():
        y = torch.tanh(scores / cap) * cap
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        ratio = torch.where(wide == 0, 1, torch.tanh(wide / cap) * cap / wide)
    return ops.identity(scores, y, ratio)
