"""What is read of the last logits of perturbed prompts, by the question that the whole prompt was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .. import targets
from ..question import Question
from ..targets import Request

FIELDS = 4  # of `Readings`


class Readings(NamedTuple):
    """What a model says to R prompts, (R,) float64 each, on the CPU.

    Attributes:
        preference: what is explained: the target's logit, minus that of the contrast where there is one, or the
            target's log-probability where that was asked for.
        decision: above 0 as long as the model prefers the target: the preference where the contrast is one token, else
            by how much the target's logit exceeds every other.
        logprob: the target's log-probability.
        distance: Hellinger distance of the next token's distribution from that of the whole prompt, 0 to 1.
    """

    preference: Tensor
    decision: Tensor
    logprob: Tensor
    distance: Tensor

    @property
    def probability(self) -> Tensor:
        """The target's."""
        return self.logprob.exp()


def settled(asked: Question, whole: Tensor) -> Question:
    """The question with the target that the model chooses of the whole prompt, (V,) logits, where none was named.

    Raises:
        ValueError: if that is the contrast.
    """
    (request,) = asked.requests
    target = int(targets.best_of(whole, 1)) if request.target is None else request.target
    if target == request.contrast:
        named = asked.choices.named([target])
        raise ValueError(f"target and contrast are both {named}: they never diverge; give two different tokens")
    return asked._replace(requests=[replace(request, target=target)])


def check_question(asked: Question, model) -> None:
    """ValueError for what no protocol can ask of perturbed prompts."""
    if asked.several:
        raise ValueError("a case asks one question: give one target and one contrast, not lists")
    (request,) = asked.requests
    if request.function is not None or request.each or asked.positions != [len(asked.ids) - 1]:
        raise ValueError("evaluate reads the logits behind the last token: leave position, answers and functions out")


def reader(request: Request, whole: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes (R, FIELDS) of (R, V) logits, float32 or wider, in the order of `Readings`.

    Args:
        request: with its target settled.
        whole: (V,) logits of the whole prompt, which the k best others are chosen by.
    """
    target, contrast = request.target, request.contrast
    roots = (whole.double().log_softmax(-1) / 2).exp()
    others = targets.others(whole, target, contrast[1]) if isinstance(contrast, tuple) else None

    def read(logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        own = logits[:, target]
        rest = logits.clone()
        rest[:, target] = -torch.inf
        margin = own - rest.amax(-1)
        if request.logprob:
            preference = logprobs[:, target]
        elif contrast is None:
            preference = own
        elif contrast == "mean":
            preference = own - logits.mean(-1)
        else:
            preference = own - (logits[:, contrast] if others is None else logits[:, others].mean(-1))
        decision = preference if isinstance(contrast, int) else margin
        distance = ((logprobs / 2).exp() - roots.to(logits.device)).norm(dim=-1) / 2**0.5
        return torch.stack([preference, decision, logprobs[:, target], distance], -1)

    return read


def readings(found: Tensor) -> Readings:
    """Of (R, FIELDS)."""
    return Readings(*found.double().cpu().unbind(-1))
