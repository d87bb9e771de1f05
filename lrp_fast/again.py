"""The question that a result answers, asked again of other logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from . import targets
from .attribution import Attribution
from .choices import Choices
from .explained import Explained
from .hf import decoder_layers
from .question import Question
from .targets import Request


def again(
    explained: Explained, function: Callable | None, whole: Tensor, logits: Tensor, choices: Choices
) -> tuple[float, Explained]:
    """The value of the same question by (P, V) other logits, and its terms: tokens that the ``whole`` model has chosen
    stay chosen."""
    kind, positions = explained.kind, [term.position for term in explained.terms]
    contrasts = {"difference": lambda term: term.contrast.id, "mean": lambda term: "mean", "top": lambda term: "mean"}
    contrast = contrasts.get(kind, lambda term: None)
    each = tuple(Request(term.target.id, contrast(term), logprob=kind == "logprob") for term in explained.terms)
    total, told = targets.explain(Request(None, None, each=each), logits, positions, choices)
    value, terms = float(total), told.terms
    if kind == "top":
        others = [targets.others(row, one.target, explained.others) for row, one in zip(whole, each, strict=True)]
        means = [float(row[those].mean()) for row, those in zip(logits, others, strict=True)]
        terms = [replace(term, contrast_logit=mean) for term, mean in zip(terms, means, strict=True)]
        value = sum(term.target.logit - term.contrast_logit for term in terms)
    if function is not None:
        value = float(function(logits.clone()))
    return value, Explained(kind, terms, told.best, "", explained.others, explained.of)


def of_result(asked: Question, result: Attribution) -> tuple[Tensor, list[int]]:
    """The tokens and positions of a result, whose prompt was read."""
    ids = result.input_ids
    if len(asked.ids) > len(ids) or not torch.equal(asked.ids, ids[: len(asked.ids)]):
        raise ValueError("result is of other tokens than input_ids: give the prompt that it explains")
    return ids, [term.position for term in result.explained.terms]


def check_same(model, scalar: Tensor, logits: Tensor, now: Explained, result: Attribution) -> None:
    """ValueError unless the logits are the result's, and the function's value, but for rounding.

    A layer rounds what it adds to the residual stream some four times, each by half a step (eps) at most and either
    way: 4 L of them come to sqrt(L) steps of what the stream holds. A logit's usual size is a quarter of the largest,
    so that 4 sigma between two runs are sqrt(2 L) steps of that, and a few more for the head. In 16 bits products are
    summed in float32; in wider dtypes their D terms are summed in the same, each sum off by sqrt(D / 2) roundings
    rather than one: that is taken more than twice, as there is room below any other model. A mean, the log of a sum,
    and what comes at a rank move no further than the logits do, a function by its gradient times that.
    """
    terms = 1 if model.dtype.itemsize < 4 else 4 * model.get_input_embeddings().weight.shape[-1]
    steps = 4 + (2 * len(decoder_layers(model)) * terms) ** 0.5
    rounding = steps * torch.finfo(model.dtype).eps * logits.detach().abs().amax(-1)
    for one, told, most in zip(now.terms, result.explained.terms, rounding.tolist(), strict=True):
        pairs = [(one.target.logit, told.target.logit)]
        if None not in (one.runner_up, told.runner_up):
            pairs.append((one.runner_up.logit, told.runner_up.logit))
        for here, there in [*pairs, (one.contrast_logit or 0.0, told.contrast_logit or 0.0)]:
            if abs(here - there) > most:
                raise ValueError(
                    f"result is of a model that says {there:.6g} after position {told.position} where this one says "
                    f"{here:.6g}: give the one that it is of"
                )
    if result.explained.kind == "function":
        (g,) = torch.autograd.grad(scalar, logits)
        most = float((g.abs().sum(-1) * rounding).sum()) + 64 * torch.finfo(logits.dtype).eps * abs(result.value)
        if abs(scalar.item() - result.value) > most:
            raise ValueError(
                f"result is of a function that gives {result.value:.6g} where target gives {scalar.item():.6g}: give "
                "the one that it is of"
            )
