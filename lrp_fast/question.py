"""What the caller wants explained, read and checked before any layer is run."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import NamedTuple

import torch

from . import prompt, targets
from .hf import (
    check,
    check_language_model,
    check_weights,
    made_for,
    position_limit,
    reads_token_types,
    vocabulary_size,
)
from .prompt import Prompt
from .rules import Rules, as_rules
from .stream import Objective
from .targets import Explained, Request
from .tokenizer import Tokenizer, special_flags, token_texts
from .tokenizer import read as read_tokenizer


class Question(NamedTuple):
    """One context, and the decisions on it that are to be explained.

    Attributes:
        ids: (N,) int64 on the CPU, a common prefix of the target strings included.
        positions: whose next-token logits are meant, each 0 ... N - 1.
        requests: the targets with their contrasts.
        several: whether the caller asked for a list of them.
        tokens, special: N strings and N flags, None without a tokenizer that has them.
    """

    ids: torch.Tensor
    positions: list[int]
    requests: list[Request]
    several: bool
    rules: Rules
    tokenizer: Tokenizer | None
    tokens: list[str] | None
    special: list[bool] | None

    def objective(self, found: list[tuple[float, Explained]]) -> Objective:
        """What `lrp_fast.stream` takes; the values, and what they are of, go to ``found``."""

        def scalars(logits: torch.Tensor) -> list[torch.Tensor]:
            explained = [targets.explain(one, logits, self.positions, self.tokenizer) for one in self.requests]
            found.extend((scalar.item(), about) for scalar, about in explained)
            return [scalar for scalar, _ in explained]

        return scalars


def read(model, input_ids, target, contrast, position, rule, tokenizer) -> Question:
    """Arguments as of `lrp_fast.attribute`. All that a tokenizer will be asked for is tried here.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend.
        UnsupportedModuleError: if the model holds a module that no rule covers.
    """
    rules = as_rules(rule)
    check_model(model)
    return read_on(model, input_ids, target, contrast, position, rules, read_tokenizer(tokenizer))


def read_on(model, input_ids, target, contrast, position, rules: Rules, tokenizer: Tokenizer | None) -> Question:
    """`read` for a model that has been checked."""
    given = prompt.read(input_ids, tokenizer)
    check_token_types(model, given.token_types)
    ids = given.ids
    target, contrast = targets.several("target", target), targets.several("contrast", contrast)
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
    notes = [*given.notes, *_check_ids(ids, model, given)]
    if given.written and tokenizer.gives_token_types and reads_token_types(model):
        notes.append(
            f"The tokenizer gives token_type_ids besides the ids, which {type(model).__name__} would read: what is "
            "explained is the model without them, as with return_token_type_ids=False."
        )
    tokens = special = None
    if tokenizer is not None:
        tokens, without = token_texts(ids.tolist(), tokenizer)
        special, unmarked = special_flags(ids.tolist(), tokenizer)
        notes += [without, unmarked]
    requests = [replace(one, note=" ".join(filter(None, [one.note, *notes]))) for one in requests]
    several = isinstance(target, list) or isinstance(contrast, list)
    return Question(ids, positions, requests, several, rules, tokenizer, tokens, special)


def _pairs(target, contrast) -> list[tuple]:
    """Each target with its contrast."""
    if isinstance(contrast, list) and len(contrast) == 2 and _is_text(contrast[0], "top") and not _is_text(contrast[1]):
        raise ValueError(f'contrast {contrast!r} is a list, which means several: write ("top", {contrast[1]!r})')
    several = [given for given in (target, contrast) if isinstance(given, list)]
    if any(not given for given in several):
        raise ValueError("a list of targets or contrasts must not be empty")
    count = max(map(len, several), default=1)
    if any(len(given) != count for given in several):
        raise ValueError(f"{len(target)} targets and {len(contrast)} contrasts do not pair: give as many of both")
    columns = []
    for name, given in (("target", target), ("contrast", contrast)):
        given = given if isinstance(given, list) else [given] * count
        columns.append([targets.several(name, one) for one in given])
        if any(isinstance(one, list) for one in columns[-1]):
            raise TypeError(f"{name} is a list of lists: give one list of ids or strings")
    return list(zip(*columns, strict=True))


def _is_text(given, text: str | None = None) -> bool:
    return isinstance(given, str) and text in (None, given)


def check_model(model) -> None:
    """As `read` does, before it looks at anything else."""
    check_language_model(model)
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first")
    check(model)
    check_weights(model)


def check_token_types(model, types) -> None:
    """Raise ``ValueError`` for token_type_ids of which the model would make something; None is none."""
    if types is not None and reads_token_types(model, types):
        raise ValueError(
            f"token_type_ids came with the prompt, which {type(model).__name__} reads, and lrp_fast gives it input_ids "
            "alone: leave them out, as a tokenizer does with return_token_type_ids=False"
        )


def _check_ids(ids: torch.Tensor, model, given: Prompt) -> list[str]:
    """Raise for ids that the model cannot read; returns notes on those that it may read badly."""
    rows = model.get_input_embeddings().weight.shape[0]
    wrong = ids[(ids < 0) | (ids >= rows)]
    if len(wrong) and given.written:
        raise ValueError(
            f"the tokenizer makes token {int(wrong[0])} of the prompt, outside the model's vocabulary, 0 to "
            f"{rows - 1}: give the tokenizer that belongs to the model"
        )
    if len(wrong):
        raise ValueError(f"input_ids holds token {int(wrong[0])}, outside the vocabulary, 0 to {rows - 1}")
    limit, most = position_limit(model), made_for(model)
    shared, size = len(ids) - len(given.ids), f"prompt has {len(ids)} tokens"
    if shared:
        size += f", {shared} of them what target and contrast share"
    if limit is not None and len(ids) > limit:
        raise ValueError(f"the {size}, more than the model's {limit} positions: shorten it")
    if limit is None and most is not None and len(ids) > most:
        return [f"The {size}, more than the {most} positions that the config says the model was made for."]
    return []


def _read_positions(position, length: int) -> list[int]:
    message = f"position must be a whole number or a sequence of them, not {position!r}"
    if isinstance(position, set | frozenset) or prompt.holds_truth(position):
        raise TypeError(message)
    try:
        given = [operator.index(position)]
    except (TypeError, RuntimeError):  # the latter of tensors without numbers
        try:
            given = [operator.index(one) for one in position]
        except (TypeError, RuntimeError) as error:
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
