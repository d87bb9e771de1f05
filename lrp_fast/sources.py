"""Relevance by source: a prompt divided into documents, chat turns or sentences, and what each of them carries."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from . import chat, offsets
from .prompt import Prompt, holds_truth
from .tokenizer import Tokenizer

REST = "(rest)"  # the tokens that are in no source
_NAME = 40  # characters of a sentence in its name
_SPAN = '(start, end) of tokens, ("chars", start, end), a range of positions, or the text itself'


class Division(NamedTuple):
    """Which source each token belongs to: S names, and (N,) int64 numbers, each of 0 ... S - 1 there."""

    names: list[str]
    groups: torch.Tensor


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Sources:
    """What the sources of a prompt carry, layer by layer.

    Attributes:
        names: S strings, in the order in which they were given; "(rest)" is last, where tokens are in none of them.
        groups: (N,) int64, the source of each token, as `Graph.group_by` takes them.
        relevance: (L + 1, S) float64, the sum of relevance over a source's tokens: over all sources, a layer's own.
        magnitude: (L + 1, S) float64, the sum of |relevance|.
    """

    names: list[str]
    groups: torch.Tensor
    relevance: torch.Tensor
    magnitude: torch.Tensor

    @classmethod
    def of(cls, layers: torch.Tensor, division: Division) -> Sources:
        """The sums of ``layers`` (L + 1, N) over a division of its tokens."""
        layers, groups = layers.detach().cpu().double(), division.groups
        empty = torch.zeros(len(layers), len(division.names), dtype=torch.float64)
        sums = [empty.index_add(1, groups, one) for one in (layers, layers.abs())]
        return cls(division.names, groups, *sums)

    def positions(self, name: str) -> list[int]:
        """The tokens of a source.

        Raises:
            ValueError: if there is no source of that name.
        """
        if name not in self.names:
            raise ValueError(f"there is no source {name!r}: they are {', '.join(map(repr, self.names))}")
        return (self.groups == self.names.index(name)).nonzero().flatten().tolist()

    def top(self, k: int = 10, layer: int = 0) -> list[tuple[str, float, float]]:
        """The ``k`` sources of greatest |relevance| at a layer: name, relevance, magnitude; the first of equals first.

        Args:
            k: 0 or more; all that there are, if it is more than that.
            layer: 0 ... L, from the end where negative.

        Raises:
            TypeError: for a ``k`` or a layer that is no whole number.
            ValueError: for a ``k`` below 0.
            IndexError: for a layer that there is not.
        """
        from .graph.spec import whole  # lrp_fast.graph imports this module first, by way of its files

        k, layer = whole(k, "k must be a whole number"), whole(layer, "layer must be a whole number")
        count = len(self.relevance)
        if k < 0:
            raise ValueError(f"k must be 0 or more sources, not {k}")
        if not -count <= layer < count:
            raise IndexError(f"there is no layer {layer}: these are {count}, 0 to {count - 1}")
        order = self.relevance[layer].abs().argsort(descending=True, stable=True)[:k].tolist()
        sums = self.relevance[layer], self.magnitude[layer]
        return [(self.names[i], *(float(one[i]) for one in sums)) for i in order]

    def graph(self, graph):
        """The graph between sources, of a `lrp_fast.Graph` between the same tokens: `Graph.group_by`."""
        return graph.group_by(self.groups, self.names)


def divide(
    given, prompt: Prompt | None, tokens: list[str] | None, tokenizer: Tokenizer | None, num_tokens: int
) -> Division:
    """What was handed in as ``sources``, as `lrp_fast.attribute` describes it.

    Args:
        prompt: as it was read; what stands behind its tokens, an answer or the common prefix of target strings, is in
            no source that is told by text. None where nobody knows how many of the tokens are its own.
        tokens: the texts of all N tokens; they are read one behind the other where the prompt has no text, and there is
            no tokenizer to decode its ids.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    text = _Text(prompt, tokens, tokenizer, num_tokens)
    if isinstance(given, str):
        if given not in ("turns", "images"):
            raise ValueError(
                f'sources {given!r} is not known: write "turns" or "images", a dict of spans, or give a splitter'
            )
        found = _turns(prompt, tokenizer, text) if given == "turns" else _images(prompt)
    elif isinstance(given, Mapping):
        if not given:
            raise ValueError("sources is an empty dict: name at least one")
        found = [(_name(name), _tokens_of(name, spans, text)) for name, spans in given.items()]
    elif callable(given):
        found = _pieces(given, text)
    else:
        raise TypeError(f'sources must be a dict of spans, "turns", "images" or a splitter, not {type(given).__name__}')
    return _division(found, num_tokens)


def check(names, groups: torch.Tensor) -> Division:
    """A division of tokens that a file holds.

    Raises:
        TypeError, ValueError: one sentence, unless all names are strings, none twice, and each has a token.
    """
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise TypeError("sources must be a list of strings")
    if len(set(names)) < len(names):
        raise ValueError("sources must not name a source twice")
    if groups.dtype != torch.int64:
        raise TypeError(f"source_of must be int64, not {groups.dtype}")
    there = groups.unique()
    if len(there) != len(names) or there[0] != 0 or there[-1] != len(names) - 1:
        raise ValueError(f"source_of must number each of the {len(names)} sources, from 0 on, and nothing else")
    return Division(names, groups)


class _Text:
    """The prompt's text, and where its tokens stand in it: worked out where somebody asks."""

    def __init__(
        self, prompt: Prompt | None, tokens: list[str] | None, tokenizer: Tokenizer | None, num_tokens: int
    ) -> None:
        self.prompt, self.tokens, self.tokenizer, self.num_tokens = prompt, tokens, tokenizer, num_tokens
        self._read: tuple[str, np.ndarray] | None = None

    def read(self) -> tuple[str, np.ndarray]:
        """The text, and (N,) `offsets.anchors`, -1 behind the prompt's tokens."""
        if self.prompt is None:
            raise ValueError("this result does not say where its prompt ends: give prompt=, or (start, end) of tokens")
        if self._read is None:
            text, found = self._of_tokens() if self.prompt.text is None else self._of_prompt()
            self._read = text, np.concatenate([found, np.full(self.num_tokens - len(found), -1)])
        return self._read

    def _of_prompt(self) -> tuple[str, np.ndarray]:
        found = offsets.anchors(self.prompt.text, self.prompt.ids.tolist(), self.tokenizer)
        if found is None:
            raise ValueError(
                "the tokenizer does not tell where its tokens stand in the text: give sources as (start, end) of tokens"
            )
        return self.prompt.text, found

    def _of_tokens(self) -> tuple[str, np.ndarray]:
        ids = self.prompt.ids.tolist()
        found = None if self.tokenizer is None else offsets.decoded(ids, self.tokenizer)
        if found is not None:
            if found[1] is None:
                raise ValueError(
                    "the tokenizer does not tell where the prompt's tokens stand in the text that it makes of them: "
                    "give the prompt as text (prompt= of by_source), or sources as (start, end) of tokens"
                )
            return found
        if self.tokens is None:
            raise ValueError("sources are told by text, and the tokens have none: give tokenizer=, or spans of tokens")
        tokens = self.tokens[: len(ids)]
        part = offsets.part_of_a_character(tokens)
        if part is not None:
            raise ValueError(
                f"token {part}, {tokens[part]!r}, is a part of a character, so that the tokens' texts are not the "
                "prompt's: give prompt= and tokenizer=, or sources as (start, end) of tokens"
            )
        return offsets.joined(tokens)

    def between(self, start: int, end: int) -> list[int]:
        """The tokens whose first character that is no blank is there."""
        _, places = self.read()
        return ((places >= start) & (places < end)).nonzero()[0].tolist()


def _name(name) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"sources must have strings for names, not {name!r}")
    if name == REST:
        raise ValueError(f"{REST!r} is what the tokens in no source are called: give that source another name")
    return name


def _tokens_of(name: str, spans, text: _Text) -> list[int]:
    """The positions of a source's span or spans."""
    several = isinstance(spans, list | tuple) and len(spans) > 0 and not _is_span(spans)
    found = [position for span in (spans if several else [spans]) for position in _of_span(name, span, text)]
    if not found:
        raise ValueError(f"source {name!r} holds no token: no token's first character that is no blank lies in it")
    return found


def _is_span(given) -> bool:
    return (len(given) == 3 and given[0] == "chars") or (len(given) == 2 and not any(map(_is_group, given)))


def _is_group(one) -> bool:
    return isinstance(one, str | range | list | tuple)


def _of_span(name: str, span, text: _Text) -> list[int]:
    if isinstance(span, str):
        return text.between(*_standing(name, span, text))
    chars = isinstance(span, list | tuple) and len(span) == 3 and span[0] == "chars"
    if isinstance(span, range):
        if span.step != 1:
            raise ValueError(f"source {name!r} is {span!r}, and a source's range has step 1: give a list of ranges")
        start, end = span.start, span.stop
    else:
        try:
            start, end = _two(span[1:] if chars else span)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"source {name!r} must be {_SPAN}, or a list of such, not {span!r}") from error
    length, what = (len(text.read()[0]), "characters") if chars else (text.num_tokens, "tokens")
    if not 0 <= start < end <= length:
        raise ValueError(f"source {name!r} is ({start}, {end}), which is no span of the prompt's {length} {what}")
    return text.between(start, end) if chars else list(range(start, end))


def _two(given) -> tuple[int, int]:
    """Start and end. TypeError, ValueError or RuntimeError (torch's) for what is no two whole numbers in an order."""
    if not (isinstance(given, list | tuple) or hasattr(given, "__array__")) or holds_truth(given):
        raise TypeError("no two whole numbers")
    start, end = map(operator.index, given)
    return start, end


def _standing(name: str, part: str, text: _Text) -> tuple[int, int]:
    said, _ = text.read()
    start = said.find(part) if part else -1
    if start < 0:
        raise ValueError(f"the text of source {name!r} does not stand in the prompt: give it as it stands there")
    if said.find(part, start + 1) >= 0:
        raise ValueError(f'the text of source {name!r} stands in the prompt twice: give ("chars", start, end)')
    return start, start + len(part)


def _turns(prompt: Prompt | None, tokenizer: Tokenizer | None, text: _Text) -> list[tuple[str, list[int]]]:
    if prompt is None or prompt.messages is None:
        raise ValueError('sources "turns" are those of a chat: hand in messages as the prompt, or a dict of spans')
    if prompt.text is None:
        raise ValueError("the tokenizer writes a chat as ids alone, without a text to find its turns in: give spans")
    places = chat.places(prompt.messages, tokenizer, prompt.text)
    roles = [f"message {i}, {one['role']}" for i, one in enumerate(prompt.messages)]
    return [(role, text.between(*place)) for role, place in zip(roles, places, strict=True) if place is not None]


def _images(prompt: Prompt | None) -> list[tuple[str, list[int]]]:
    if prompt is None or not prompt.images:
        raise ValueError('sources "images" are those of a prompt with images: hand in what a processor returned of it')
    if prompt.image_places is None:
        raise ValueError(
            'sources "images" are not told: the images stand in tiles or side by side, or no model has said which '
            "tokens are theirs, as attribute's does: give (start, end) of tokens"
        )
    return [(f"image {i}", list(range(*place))) for i, place in enumerate(prompt.image_places)]


def _pieces(split: Callable, text: _Text) -> list[tuple[str, list[int]]]:
    """What a splitter makes of the text: strings that stand in it one behind the other, or their (start, end)."""
    said, _ = text.read()
    found, at = [], 0
    pieces = split(said)
    if isinstance(pieces, str | bytes | Mapping | set | frozenset) or not hasattr(pieces, "__iter__"):
        kind = type(pieces).__name__
        raise TypeError(f"the splitter must give a list of strings, or of (start, end) of characters, not {kind}")
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            start = said.find(piece, at)
            if start < 0:
                raise ValueError(f"the splitter gave {piece[:60]!r}, which does not stand in the text behind the last")
            at = start + len(piece)
        else:
            last = at
            try:
                start, at = _two(piece)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"the splitter must give strings or (start, end), not {piece!r}") from error
            if not 0 <= start <= at <= len(said):
                raise ValueError(f"the splitter gave ({start}, {at}), no span of the text's {len(said)} characters")
            if start < last:
                raise ValueError(f"the splitter gave ({start}, {at}), which begins before the last piece's end, {last}")
        words = " ".join(said[start:at].split())
        found.append((f"{i}: {words if len(words) <= _NAME else words[:_NAME] + '...'}", text.between(start, at)))
    return found


def _division(found: list[tuple[str, list[int]]], num_tokens: int) -> Division:
    """Of names and positions; those without a token are left out."""
    found = [(name, positions) for name, positions in found if positions]
    if not found:
        raise ValueError("sources hold no token of the prompt: there is nothing to add up")
    groups = np.full(num_tokens, -1)
    for i, (name, positions) in enumerate(found):
        for position in positions:
            if groups[position] >= 0:
                raise ValueError(
                    f"sources {found[groups[position]][0]!r} and {name!r} overlap at position {position}: a token "
                    "belongs to one source"
                )
            groups[position] = i
    names = [name for name, _ in found]
    if (groups < 0).any():
        groups[groups < 0] = len(names)
        names.append(REST)
    return Division(names, torch.from_numpy(groups).to(torch.int64))
