"""What the caller wants explained, read and checked before any layer is run."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch

from . import targets
from .hf import check, check_language_model, check_weights, vocabulary_size
from .rules import Rules, as_rules
from .stream import Objective
from .targets import Explained, Request


class Question(NamedTuple):
    """One context, and the decisions on it that are to be explained.

    Attributes:
        ids: (N,) int64 on the CPU, a common prefix of the target strings included.
        positions: whose next-token logits are meant, each 0 ... N - 1.
        requests: the targets with their contrasts.
    """

    ids: torch.Tensor
    positions: list[int]
    requests: list[Request]
    rules: Rules

    def objective(self, tokenizer, found: list[tuple[float, Explained]]) -> Objective:
        """What `lrp_fast.stream` takes; the values, and what they are of, go to ``found``."""

        def scalars(logits: torch.Tensor) -> list[torch.Tensor]:
            explained = [targets.explain(one, logits, self.positions, tokenizer) for one in self.requests]
            found.extend((scalar.item(), about) for scalar, about in explained)
            return [scalar for scalar, _ in explained]

        return scalars


def read(model, input_ids, target, contrast, position, rule, tokenizer) -> Question:
    """Arguments as of `lrp_fast.attribute`.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend.
        UnsupportedModuleError: if the model holds a module that no rule covers.
    """
    rules = as_rules(rule)
    check_model(model)
    ids = _read_ids(input_ids, tokenizer)
    pairs = _pairs(target, contrast)
    requests = [targets.read(*pair, tokenizer=tokenizer, vocab_size=vocabulary_size(model)) for pair in pairs]
    positions = _read_positions(position, len(ids))
    prefix = requests[0].prefix
    if any(request.prefix != prefix for request in requests):
        raise ValueError(
            "the targets and contrasts share different beginnings, which would become different prompts: explain them "
            "one by one"
        )
    if prefix:
        if positions != [len(ids) - 1]:
            raise ValueError(
                f"target {pairs[0][0]!r} and contrast {pairs[0][1]!r} begin alike, so they can only be compared behind "
                "the prompt: use position=-1, or strings that differ in their first token"
            )
        ids = torch.cat([ids, torch.tensor(prefix)])
        positions = [len(ids) - 1]
    _check_ids(ids, model)
    return Question(ids, positions, requests, rules)


def _pairs(target, contrast) -> list[tuple]:
    """Each target with its contrast."""
    if isinstance(contrast, list) and len(contrast) == 2 and contrast[0] == "top" and not isinstance(contrast[1], str):
        raise ValueError(f'contrast {contrast!r} is a list, which means several: write ("top", {contrast[1]!r})')
    several = [given for given in (target, contrast) if isinstance(given, list)]
    if any(not given for given in several):
        raise ValueError("a list of targets or contrasts must not be empty")
    count = max(map(len, several), default=1)
    if any(len(given) != count for given in several):
        raise ValueError(f"{len(target)} targets and {len(contrast)} contrasts do not pair: give as many of both")
    target, contrast = (given if isinstance(given, list) else [given] * count for given in (target, contrast))
    return list(zip(target, contrast, strict=True))


def check_model(model) -> None:
    """As `read` does, before it looks at anything else."""
    check_language_model(model)
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first")
    check(model)
    check_weights(model)


def _read_ids(input_ids, tokenizer) -> torch.Tensor:
    if isinstance(input_ids, str):
        if tokenizer is None:
            raise ValueError("input_ids is a string: give tokenizer= with it, or token ids")
        input_ids = tokenizer.encode(input_ids)
    if hasattr(input_ids, "input_ids"):
        raise TypeError("input_ids is all that a tokenizer returned: pass its .input_ids")
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"input_ids must be a LongTensor (N,) or (1, N), or a str: {error}") from error
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        shape = tuple(ids.shape)
        raise ValueError(f"input_ids must be (N,) or (1, N), one prompt, not {shape}: attribute_batch takes several")
    if len(ids) == 0:
        raise ValueError("input_ids is empty: give at least one token")
    if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.is_complex():
        raise TypeError(f"input_ids must hold whole numbers, not {ids.dtype}")
    return ids.detach().to("cpu", torch.int64)


def _check_ids(ids: torch.Tensor, model) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    wrong = ids[(ids < 0) | (ids >= rows)]
    if len(wrong):
        raise ValueError(f"input_ids holds token {int(wrong[0])}, outside the vocabulary, 0 to {rows - 1}")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and len(ids) > longest:
        raise ValueError(f"the prompt has {len(ids)} tokens, more than the model's {longest} positions: shorten it")


def _read_positions(position, length: int) -> list[int]:
    message = f"position must be a whole number or a sequence of them, not {position!r}"
    if isinstance(position, bool | set | frozenset) or getattr(position, "dtype", None) == torch.bool:
        raise TypeError(message)
    try:
        given = [operator.index(position)]
    except TypeError:
        try:
            given = [operator.index(one) for one in position]
        except TypeError as error:
            raise TypeError(message) from error
    if not given:
        raise ValueError("position is an empty sequence: name at least one position")
    for one in given:
        if not -length <= one < length:
            raise ValueError(f"position {one} is outside the prompt's {length} tokens")
    places = [one % length for one in given]
    if len(set(places)) < len(places):
        raise ValueError(f"position {position!r} names a position twice")
    return places
