"""What logits are of, and how it is named: the tokens of a vocabulary, or labels."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .hf import head_of, is_masked_language_model, multi_label
from .reading import cut
from .tokenizer import BLANK, Tokenizer, plain_text

EXPECTED = {  # of a vocabulary
    "target": "a token id or a string",
    "contrast": 'a token id or a string, "mean" or ("top", k)',
    "answer": "a string or token ids",
}
_SHOWN = 12  # labels that a sentence names


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a vocabulary of ``size``, which strings name through a tokenizer.

    Attributes:
        what: one of them, in words, as `Explained.of` has it.
    """

    size: int
    tokenizer: Tokenizer | None = None
    what: str = "token"

    def check(self, contrast, logprob: bool) -> None:
        """Nothing is refused here."""

    def text(self, one: int) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.text([one])

    def named(self, ids: Sequence[int]) -> str:
        """In a sentence."""
        return ", ".join(f"token {one}" for one in ids) if self.tokenizer is None else self.tokenizer.named(ids)

    def ids_of(self, name: str, given) -> tuple[int, ...]:
        """The ids of a string, or the one id that was given, which is called ``name``.

        Raises:
            TypeError, ValueError: one sentence that names the culprit and the mend.
        """
        if isinstance(given, str):
            return self._of_text(name, given)
        one = _number(name, given)
        if one is None:
            raise TypeError(f"{name} must be {EXPECTED[name]}, not {given!r}")
        if not 0 <= one < self.size:
            raise ValueError(f"{name} {one} is outside the vocabulary, 0 to {self.size - 1}")
        return (one,)

    def _of_text(self, name: str, given: str) -> tuple[int, ...]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError(f"{name} {given!r} is a string: give tokenizer= with it, or a token id")
        given = plain_text(given, name)
        ids = made = tuple(tokenizer.encode(given, f"{name} {given!r}", added=False))
        pieces = tokenizer.pieces(list(made))
        blank = given.startswith(" ") and len(ids) > 1 and pieces[0] == BLANK
        if blank and (pieces[1] or "").startswith(BLANK):
            ids = ids[1:]  # SentencePiece puts a blank before every text: of " word" it makes two
        if not ids:
            raise ValueError(f"{name} {given!r} is no token at all: give a string that the tokenizer does not drop")
        unknown = tokenizer.unknown
        if unknown is not None and unknown[0] in ids and unknown[1] not in given:
            pieces = [piece or tokenizer.text([one]) for one, piece in zip(made, pieces, strict=True)]
            raise ValueError(
                f"{name} {given!r} holds what the tokenizer does not know, and becomes {pieces}: give a string that it "
                "knows, or a token id"
            )
        dropped = tokenizer.dropped(given, list(made))
        if dropped:
            raise ValueError(
                f"{name} {given!r} holds {dropped[0]!r}, which the tokenizer drops: give a string without it, or a "
                "token id"
            )
        wrong = [one for one in ids if not 0 <= one < self.size]
        if wrong:
            raise ValueError(
                f"{name} {given!r} becomes token {wrong[0]}, outside the model's vocabulary, 0 to {self.size - 1}: "
                "give the tokenizer that belongs to the model"
            )
        return ids


@dataclass(frozen=True)
class Labels:
    """Labels by their names.

    Attributes:
        apart: whether each is true or false by itself, so that no softmax goes over them.
    """

    names: tuple[str, ...]
    apart: bool = False
    what = "label"

    @property
    def size(self) -> int:
        return len(self.names)

    def check(self, contrast, logprob: bool) -> None:
        """ValueError for what one score, or labels that are true or false each by itself, do not have, and for a label
        that is called as a contrast is."""
        if isinstance(contrast, str) and contrast == "mean" and contrast in self.names:
            raise ValueError(
                "contrast 'mean' is the mean of all logits, and a label's name: give its number, or (\"top\", "
                f"{self.size - 1}) for the mean of all others"
            )
        if self.size == 1 and contrast is not None:
            raise ValueError("the model gives one score, which has nothing beside it to contrast with: leave it out")
        if self.size == 1 and logprob:
            raise ValueError('the model gives one score, which is no log-probability: leave "logprob" out')
        if self.apart and logprob:
            raise ValueError(
                "the model's labels are true or false each by itself (problem_type multi_label_classification), and "
                "have no log-probability among each other: give a function of the logits, such as a logsigmoid"
            )

    def text(self, one: int) -> str:
        return self.names[one]

    def named(self, ids: Sequence[int]) -> str:
        """In a sentence."""
        return ", ".join(repr(cut(self.names[one])) for one in ids)

    def ids_of(self, name: str, given) -> tuple[int]:
        """The one label that a name or a number says; see `Vocabulary.ids_of`."""
        if isinstance(given, str):
            found = [one for one, label in enumerate(self.names) if label == given]
            if not found:
                more = f" and {self.size - _SHOWN} more" if self.size > _SHOWN else ""
                raise ValueError(
                    f"{name} {given!r} is no label of the model, which has {self.named(range(min(self.size, _SHOWN)))}"
                    f"{more}: give one of these, or its number"
                )
            if len(found) > 1:
                raise ValueError(f"{name} {given!r} is the name of labels {found[0]} and {found[1]}: give a number")
            return (found[0],)
        one = _number(name, given)
        if one is None:
            raise TypeError(f"{name} must be a label's name or its number, not {given!r}")
        if not 0 <= one < self.size:
            raise ValueError(f"{name} {one} is outside the labels, 0 to {self.size - 1}")
        return (one,)


Choices = Vocabulary | Labels


def choices_of(model: nn.Module, tokenizer: Tokenizer | None) -> Choices:
    """What the logits of a model are of."""
    head = head_of(model)
    if head.labels is None:
        return Vocabulary(head.size, tokenizer, "masked token" if is_masked_language_model(model) else "token")
    return Labels(head.labels, multi_label(model))


def _number(name: str, given) -> int | None:
    """What stands for a whole number; None for anything else."""
    if isinstance(given, bytes | bytearray | memoryview):
        raise TypeError(f"{name} is {type(given).__name__}, which is no text yet: decode it, as .decode('utf-8') does")
    try:
        return None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        return None
