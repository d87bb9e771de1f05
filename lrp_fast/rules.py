"""Which rule does what to which operation: the only place where a rule's name is turned into numbers.

AttnLRP is Achtibat et al., ICML 2024 (arXiv 2402.05602); CP-LRP is Ali et al., ICML 2022 (arXiv 2202.07304);
"gradient" is plain gradient x input, the baseline that both modify; "gim" is Edin et al., 2025 (arXiv 2505.17630).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from numbers import Real
from types import MappingProxyType
from typing import NamedTuple


class Treatment(NamedTuple):
    """What a named rule does to each kind of operation.

    Every share multiplies the plain gradient of one factor of a product: a product of two tensors that
    are both explained splits its relevance, so each factor takes one half.
    """

    frozen_norm: bool  # a norm's rstd (and nothing else of it) is a constant
    ratio: bool  # activations and soft-caps pass g f(z)/z instead of g f'(z)
    # Share of act(gate) in act(gate) * up, of the routing weight in routing weight * expert output: 0, or as `up`.
    gate: float
    up: float  # share of up, of the expert output
    value: float  # share of V in P V
    score: float  # share of P in P V, times the share of q (and of k) in q k^T; 0: P is a constant
    temperature: float = 1.0  # T: the softmax of scores s passes gradients by the Jacobian of softmax at s / T


_TREATMENTS = MappingProxyType(
    {
        "attnlrp": Treatment(frozen_norm=True, ratio=True, gate=0.5, up=0.5, value=0.5, score=0.25),
        "cp": Treatment(frozen_norm=True, ratio=True, gate=0.0, up=1.0, value=1.0, score=0.0),
        "gradient": Treatment(frozen_norm=False, ratio=False, gate=1.0, up=1.0, value=1.0, score=1.0),
        # As attnlrp, but for activations and soft-caps, whose gradient is plain, and for the softmax.
        "gim": Treatment(
            frozen_norm=True, ratio=False, gate=0.5, up=0.5, value=0.5, score=0.25, temperature=2.0
        ),
    }
)


@dataclass(frozen=True)
class Rules:
    """A propagation rule with its stabilisers.

    Args:
        name: ``"attnlrp"``, ``"cp"``, ``"gradient"`` or ``"gim"``, which is here to be measured beside the others: it
            takes no graph, no tolerance and no stabilisers of the attention.
        epsilon: of the epsilon rule on every linear map, absolute, >= 0; 0 switches it off.
        gamma: of the (signed) gamma rule on every linear map, >= 0; 0 switches it off.
        attention_epsilon: as ``epsilon``, on the product of attention weights and values.
        attention_gamma: as ``gamma``, on the product of attention weights and values.

    Raises:
        ValueError: for an unknown name, a negative or non-finite stabiliser, or one that the rule does not take.
    """

    name: str = "attnlrp"
    epsilon: float = 0.0
    gamma: float = 0.0
    attention_epsilon: float = 0.0
    attention_gamma: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _TREATMENTS:
            raise ValueError(f"unknown rule {self.name!r}: choose one of {', '.join(map(repr, _TREATMENTS))}")
        for field, value in asdict(self).items():
            if field == "name":
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value <= sys.float_info.max:
                raise ValueError(f"{field} must be a finite number >= 0, not {value!r}")
            object.__setattr__(self, field, float(value))  # one that JSON can hold, whatever kind of number came
        if self.treatment.temperature != 1 and (self.attention_epsilon or self.attention_gamma):
            raise ValueError(f"{self.name} has no stabilisers of the attention: leave attention_epsilon and -gamma out")

    @property
    def treatment(self) -> Treatment:
        return _TREATMENTS[self.name]


def as_rules(rule: str | Rules) -> Rules:
    """``rule`` as `Rules`; a plain name means no epsilon and no gamma."""
    if isinstance(rule, Rules):
        return rule
    if isinstance(rule, str):
        return Rules(rule)
    raise TypeError(f"rule must be a name or lrp_fast.Rules, not {type(rule).__name__}")
