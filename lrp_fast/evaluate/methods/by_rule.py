"""Relevance of the input tokens, by one of this package's own rules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...attribution import explain
from ...question import Question
from ...rules import Rules


@dataclass(frozen=True)
class ByRule:
    """`lrp_fast.attribute` of the question; by the rule "gradient" that is gradient x input.

    Attributes:
        rules: whose graph "graph_cuts" takes, too.
        absolute: whether signs are dropped.
    """

    rules: Rules
    absolute: bool = False

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        (found,) = explain(model, question._replace(rules=self.rules), None, None, None, 0.0)
        return found.relevance.abs() if self.absolute else found.relevance
