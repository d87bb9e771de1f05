"""What gives each token of a prompt a score, by name.

A method is called with a model, (N,) token ids and the question, and gives (N,) scores, higher where a token speaks for
the target over the contrast. Those here are told by a word, ``NAME`` or ``NAME:option=value,option=value``, as
"attnlrp:gamma=0.1" and "integrated_gradients:steps=64"; the options are the fields of their classes, and of a rule its
stabilisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType

from ...rules import Rules
from .attention import LastAttention, Rollout
from .by_rule import ByRule
from .integrated import IntegratedGradients
from .leave_one_out import LeaveOneOut
from .without_model import Position, Random

METHODS: Mapping[str, object] = MappingProxyType(
    {
        "random": Random(),
        "position": Position(),
        "last_attention": LastAttention(),
        "attention_rollout": Rollout(),
        "gradient": ByRule(Rules("gradient")),
        "abs_gradient": ByRule(Rules("gradient"), absolute=True),
        "integrated_gradients": IntegratedGradients(),
        "leave_one_out": LeaveOneOut(),
        "gim": ByRule(Rules("gim")),
        "cp": ByRule(Rules("cp")),
        "attnlrp": ByRule(Rules("attnlrp")),
    }
)


def named(word: str):
    """The method that a word tells.

    Raises:
        ValueError: one sentence, for a name or an option that there is not, or a value that it cannot have.
    """
    name, _, told = word.partition(":")
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}: name {', '.join(METHODS)}")
    options = {}
    for part in filter(None, told.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"method {word!r} has an option without a value: write {name}:option=value")
        options[option.strip()] = value.strip()
    method = METHODS[name]
    if isinstance(method, ByRule):
        return replace(method, rules=replace(method.rules, **_read(word, method.rules, options, "name")))
    return replace(method, **_read(word, method, options))


def _read(word: str, of, options: dict[str, str], *fixed: str) -> dict:
    """The values of some fields of a dataclass, each of the kind that it has."""
    known = [field.name for field in fields(of) if field.name not in fixed]
    found = {}
    for option, value in options.items():
        if option not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"method {word!r} has no option {option!r}: {there}")
        now = getattr(of, option)
        try:
            found[option] = int(value) if isinstance(now, str) and value.isdigit() else type(now)(value)
        except ValueError as error:
            raise ValueError(f"method {word!r}: {option} must be a number, not {value!r}") from error
    return found


__all__ = [
    "METHODS",
    "ByRule",
    "IntegratedGradients",
    "LastAttention",
    "LeaveOneOut",
    "Position",
    "Random",
    "Rollout",
    "named",
]
