"""A soft-cap on logits, by the code of the model that has it."""

from __future__ import annotations

import functools
from contextlib import ExitStack

from torch import nn

from ..rules import Rules
from .functions import by_rule
from .overlay import Overlay, forward_name, forward_of, laid


def language_model_with_cap(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.capped_language_model`, whatever its config calls the cap: what its code does behind the head obeys
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
