"""What of a prompt is perturbed together: tokens, or spans of them where it is long."""

from __future__ import annotations

import re

Span = tuple[int, int]  # start and end of tokens

_ENDS = re.compile(r"""[.!?][)\]"'”’]*\s*$|\n\s*$""")


def units_of(given: str | int, length: int, fixed: list[bool], tokens: list[str] | None = None) -> list[Span]:
    """The spans that are perturbed, in their order.

    Args:
        given: "tokens", each a unit of its own; a whole number, runs of so many of them; or "sentences", up to a token
            that ends with ".", "!", "?" (and a quote or bracket that closes) or a line break.
        fixed: N flags, the tokens that stay in every prompt (special ones): no unit holds one or reaches across it.
        tokens: the N tokens' texts, for sentences.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend.
    """
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not (given in ("tokens", "sentences") if isinstance(given, str) else whole):
        raise TypeError(f'units must be "tokens", "sentences" or a number of tokens, not {given!r}')
    if whole and given < 1:
        raise ValueError(f"units must be 1 or more tokens, not {given}")
    if given == "sentences" and tokens is None:
        raise ValueError('units="sentences" are told by the tokens\' texts: give tokenizer=')
    size = 1 if given == "tokens" else given if whole else length
    found: list[Span] = []
    start = None
    for i in range(length + 1):
        if start is not None and (i == length or fixed[i] or i - start == size or _ended(given, tokens, i - 1)):
            found.append((start, i))
            start = None
        if i < length and not fixed[i] and start is None:
            start = i
    if not found:
        raise ValueError("all tokens of the prompt are special ones: there is nothing to perturb")
    return found


def _ended(given: str | int, tokens: list[str] | None, i: int) -> bool:
    return given == "sentences" and _ENDS.search(tokens[i]) is not None
