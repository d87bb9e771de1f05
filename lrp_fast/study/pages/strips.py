"""The relevance of a case's tokens in a few letters, or numbers, as an index of thousands of cases shows it."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

CELLS = 48
PARTS = 20
STEPS = 24  # levels on either side of 0, as the pages' colours have them
_ZERO = ord("A") + STEPS


class Strip(NamedTuple):
    """A strip, and the position of the strongest token; None where all are special."""

    text: str
    strongest: int | None


def strip(relevance, special: list[bool] | None = None) -> Strip:
    """(N,) finite relevance in min(N, `CELLS`) cells from left to right, a letter each.

    A cell has the value of greatest magnitude among its tokens, of which the case's greatest is 'A' where it is
    negative and 'q' where it is positive; 'Y' is 0. Special tokens count as little as on a case's page: a cell of
    nothing else is a dot.
    """
    values = np.asarray(relevance, np.float64)
    n = len(values)
    magnitude = np.abs(values)
    if special is not None:
        magnitude[np.array(special, bool)] = -1
    peak = magnitude.max()
    if peak < 0:
        return Strip("." * min(n, CELLS), None)
    edges = np.arange(min(n, CELLS) + 1) * n // min(n, CELLS)
    best = np.array([start + magnitude[start:end].argmax() for start, end in pairwise(edges.tolist())])
    levels = np.floor(values[best] / (peak or 1.0) * STEPS + 0.5).astype(int) + _ZERO
    levels[magnitude[best] < 0] = ord(".")
    return Strip("".join(map(chr, levels.tolist())), int(magnitude.argmax()))


def profile(relevance, special: list[bool] | None = None) -> np.ndarray | None:
    """What share of |relevance| each twentieth of the input has: (`PARTS`,) float64 that sum to 1.

    Special tokens count as 0; None where all do.
    """
    magnitude = np.abs(np.asarray(relevance, np.float64))
    if special is not None:
        magnitude[np.array(special, bool)] = 0
    if magnitude.sum() == 0:
        return None
    held = np.concatenate([[0.0], magnitude.cumsum()]) / magnitude.sum()  # of a token, evenly over its place
    return np.diff(np.interp(np.arange(PARTS + 1) / PARTS, np.arange(len(held)) / len(magnitude), held))
