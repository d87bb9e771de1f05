"""`session`: a model that stays checked and patched while many short prompts are explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .hf import in_session
from .question import check_model
from .rules import Rules, as_rules


@contextmanager
def session(model: nn.Module, rule: str | Rules = "attnlrp") -> Iterator[nn.Module]:
    """Within the block, calls of this package that explain ``model`` by this rule find it checked, patched and
    measured already.

        with lrp_fast.session(model, rule="cp"):
            results = [lrp_fast.attribute(model, prompt, rule="cp", tokenizer=tokenizer) for prompt in prompts]

    The numbers are those of the same calls without it. What it saves does not depend on the prompt's length, and so
    counts for short ones.

    As within `lrp_fast.patched`, the block belongs to the thread that entered it, and backward passes of your own
    propagate relevance. The model's modules, weights' shapes and types, devices and configs have to stay as they are
    until the block ends: what changes is not seen. Hooks are looked for at every call, as ever.

    Args:
        model: as in `lrp_fast.attribute`.
        rule: a name or `lrp_fast.Rules`; a call inside that asks for another is refused.

    Raises:
        TypeError, ValueError, UnsupportedModuleError: as `lrp_fast.attribute` does, for the model and the rule.
        RuntimeError: as `lrp_fast.patched` does.
    """
    rules = as_rules(rule)
    check_model(model)
    with in_session(model, rules):
        yield model
