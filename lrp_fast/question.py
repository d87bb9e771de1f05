"""What the caller wants explained, read and checked before any layer is run."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import NamedTuple

import torch

from . import answers, images, prompt, targets
from .choices import Choices, choices_of
from .explained import Explained
from .hf import (
    check,
    check_images,
    check_language_model,
    check_weights,
    head_of,
    image_token,
    in_tiles,
    is_masked_language_model,
    made_for,
    pooled_position,
    position_limit,
    reads_all_tokens,
    reads_causally,
    reads_images_both_ways,
    reads_token_types,
)
from .prompt import Prompt
from .rules import Rules, as_rules
from .stream import Objective
from .targets import Request
from .tokenizer import Tokenizer, special_flags, token_texts
from .tokenizer import read as read_tokenizer


class Question(NamedTuple):
    """One context, and the decisions on it that are to be explained.

    Attributes:
        ids: (N,) int64 on the CPU, a common prefix of the target strings, or what is read of an answer, included.
        positions: whose logits are meant, each 0 ... N - 1.
        requests: the targets with their contrasts.
        several: whether the caller asked for a list of them.
        tokens, special: N strings and N flags, None without a tokenizer that has them.
        prompt: as it was read, without that prefix.
        choices: what the logits are of.
        images: what the model is given with the ids, by name.
    """

    ids: torch.Tensor
    positions: list[int]
    requests: list[Request]
    several: bool
    rules: Rules
    tokenizer: Tokenizer | None
    tokens: list[str] | None
    special: list[bool] | None
    prompt: Prompt
    choices: Choices
    images: dict[str, torch.Tensor]

    def objective(self, found: list[tuple[float, Explained]]) -> Objective:
        """What `lrp_fast.stream` takes; the values, and what they are of, go to ``found``."""

        def scalars(logits: torch.Tensor) -> list[torch.Tensor]:
            explained = [targets.explain(one, logits, self.positions, self.choices) for one in self.requests]
            found.extend((scalar.item(), about) for scalar, about in explained)
            return [scalar for scalar, _ in explained]

        return scalars


def read(
    model, input_ids, target, contrast, position, rule, tokenizer, answer=None, by_token: bool = False
) -> Question:
    """Arguments as of `lrp_fast.attribute`. All that a tokenizer will be asked for is tried here.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend.
        UnsupportedModuleError: if the model holds a module that no rule covers.
    """
    rules = as_rules(rule)
    check_model(model)
    given = (model, input_ids, target, contrast, position, rules, read_tokenizer(tokenizer), answer, by_token)
    return read_on(*given)


def read_on(
    model,
    input_ids,
    target,
    contrast,
    position,
    rules: Rules,
    tokenizer: Tokenizer | None,
    answer=None,
    by_token: bool = False,
) -> Question:
    """`read` for a model that has been checked."""
    given = prompt.read(input_ids, tokenizer)
    if not (given.images and reads_images_both_ways(model)):
        check_token_types(model, given.token_types)
    ids = given.ids
    choices = choices_of(model, tokenizer)
    if answer is not None and choices.what != "token":
        raise ValueError(
            f"{type(model).__name__} gives the logits of {choices.what}s, and no answer has any: leave answer out, and "
            f"name a {choices.what} as target"
        )
    positions = _read_places(model, ids, position, tokenizer)
    if by_token and answer is None:
        raise ValueError("by_token explains every token of an answer, and there is none: give answer=")
    if answer is None:
        target, contrast = targets.several("target", target), targets.several("contrast", contrast)
        pairs = _pairs(target, contrast)
        requests = [targets.read(*pair, choices) for pair in pairs]
        several = isinstance(target, list) or isinstance(contrast, list)
        alike = f"target {pairs[0][0]!r} and contrast {pairs[0][1]!r} begin alike"
        if choices.what == "masked token" and requests[0].prefix:
            raise ValueError(f"{alike}, and one masked token is compared: give strings whose first tokens differ")
        _check_prefix(requests, positions, len(ids), alike)
        _check_each(requests, positions)
    else:
        requests = answers.read(answer, target, contrast, choices, by_token)
        several = by_token
        if positions != [len(ids) - 1]:
            raise ValueError(
                "an answer stands behind the prompt, and its own positions are explained: leave position out"
            )
    prefix = requests[0].prefix
    if prefix:
        ids = torch.cat([ids, torch.tensor(prefix)])
    if prefix or answer is not None:
        count = len(requests) if by_token else len(requests[0].each) or 1
        positions = list(range(len(ids) - count, len(ids)))
    behind = len(ids) - 1 - positions[0] if head_of(model).pools and reads_causally(model) else 0
    told = (note for note in given.notes if choices.what == "token" or not isinstance(note, prompt.OfTheEnd))
    notes = [*told, *_read_elsewhere(ids, behind, model), *check_ids(ids, model, given, answer is not None)]
    if given.images:
        notes.append(check_images(model, given.images, given.ids))
        if not in_tiles(model):
            given = given._replace(image_places=images.places(given.images, given.ids, image_token(model)))
    if answer is not None:
        notes.append(answers.at_the_seam(answer, given.text, tokenizer))
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
    shown = images.behind(given.images, len(ids))
    return Question(ids, positions, requests, several, rules, tokenizer, tokens, special, given, choices, shown)


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


def _check_prefix(requests: list[Request], positions: list[int], length: int, alike: str) -> None:
    """ValueError unless all share the same beginning, and that can stand behind the prompt."""
    if any(request.prefix != requests[0].prefix for request in requests):
        raise ValueError(
            "the targets and contrasts share different beginnings, which would become different prompts: explain them "
            "one by one"
        )
    if requests[0].prefix and positions != [length - 1]:
        raise ValueError(
            f"{alike}, so they can only be compared behind the prompt: use position=-1, or strings that differ in "
            "their first token"
        )


def _check_each(requests: list[Request], positions: list[int]) -> None:
    for request in requests:
        if request.each and len(request.each) != len(positions):
            raise ValueError(
                f"target is a tuple of {len(request.each)}, one a position, and position names {len(positions)}: give "
                "as many of both, or a list for several explanations"
            )


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


def refuse_images(asked: Question, who: str) -> None:
    """Raise ``TypeError`` for a prompt with images, of one that takes text alone."""
    if asked.images:
        raise TypeError(f"pixel_values came with the prompt, and {who} takes text alone: attribute takes images")


def check_ids(ids: torch.Tensor, model, given: Prompt, answered: bool) -> list[str]:
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
        size += f", {shared} of them {'of the answer' if answered else 'what target and contrast share'}"
    if limit is not None and len(ids) > limit:
        raise ValueError(f"the {size}, more than the model's {limit} positions: shorten it")
    if limit is None and most is not None and len(ids) > most:
        return [f"The {size}, more than the {most} positions that the config says the model was made for."]
    return []


def _read_places(model, ids: torch.Tensor, position, tokenizer: Tokenizer | None) -> list[int]:
    """As `read_positions`; of a model that pools, the one position that it reads; of a masked language model, in the
    place of -1, that of its mask token."""
    found = read_positions(position, len(ids))
    default = _is_number(position, -1)
    if default and is_masked_language_model(model):
        return [_masked(model, ids, tokenizer)]
    if not head_of(model).pools:
        return found
    pooled = pooled_position(model, ids)
    if not default and found != [pooled]:
        where = "all positions" if reads_all_tokens(model) else f"position {pooled}"
        raise ValueError(
            f"{type(model).__name__} has logits of the whole prompt, which it reads at {where}, and position is "
            f"{position!r}: leave it out"
        )
    return [pooled]


def _is_number(given, number: int) -> bool:
    try:
        return operator.index(given) == number
    except (TypeError, RuntimeError):  # of sequences, as in `read_positions`
        return False


def _masked(model, ids: torch.Tensor, tokenizer: Tokenizer | None) -> int:
    """The position of the only mask token."""
    mask = None if tokenizer is None else tokenizer.id_of("mask")
    if mask is None:
        who = f"{type(model).__name__} is a masked language model"
        raise ValueError(f"{who}, and no tokenizer says what its mask token is: give position=, or tokenizer=")
    places = (ids == mask).nonzero().flatten().tolist()
    if len(places) != 1:
        where = f", at positions {', '.join(map(str, places[:8]))}{' ...' * (len(places) > 8)}" if places else ""
        raise ValueError(
            f"the prompt holds {len(places) or 'no'} mask token{'s' * bool(places)}, {tokenizer.named([mask])}{where}: "
            "give position= to say which position is explained"
        )
    return places[0]


def _read_elsewhere(ids: torch.Tensor, behind: int, model) -> list[str]:
    """A note, if a model that pools reads its logits before the end, or at no one position."""
    if reads_all_tokens(model):
        return ["The model classifies by a mean over all tokens, which have a share each: position 0 stands for all."]
    if not behind:
        return []
    padding = f"pad token, {int(ids[-1])}, as it is told apart by its id alone"
    return [f"The model takes what stands behind position {len(ids) - 1 - behind} for padding: its {padding}."]


def read_positions(position, length: int, name: str = "position") -> list[int]:
    """One position or several, from the end where negative, as 0 ... ``length`` - 1; ``name`` is the argument's."""
    message = f"{name} must be a whole number or a sequence of them, not {position!r}"
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
        raise ValueError(f"{name} is an empty sequence: name at least one position")
    for one in given:
        if not -length <= one < length:
            raise ValueError(f"{name} {one} is outside the prompt's {length} tokens")
    places = [one % length for one in given]
    if len(set(places)) < len(places):
        raise ValueError(f"{name} {position!r} names a position twice")
    return places
