"""Figures of a relevance vector: how spread it is, and where in the prompt it lies.

They are the five that Debug-XAI, the code of arXiv 2604.17761, takes of input relevance. With R (N,) the relevance of
the input tokens, positions i = 0 ... N - 1, and p_i = |R_i| / sum_j |R_j|:

    entropy          - sum_i p_i ln p_i / ln N, from 0 (one token has all) to 1 (all have the same); 0 for N = 1
    gini             sum_i (2 i - n - 1) x_i / (n sum_i x_i) of the |R_i| in ascending order, x_1 <= ... <= x_n, n = N
    top90            the smallest number of tokens whose |R| hold 0.9 of the sum
    top90_share      that number over N
    center           sum_i i p_i, a position
    center_share     center / (N - 1), 0 the first token and 1 the last; 0.5 for N = 1
    early_late       sum of |R_i| over i < floor(N / 2), over that of all the others; infinite where the latter is 0

Signs do not count, and special tokens do. Where all R are 0 there is no distribution, and each is NaN (there: those of
a uniform one, or 0). `lrp_fast.graph.measures` has those of a graph.
"""

from __future__ import annotations

import math

import numpy as np

NAMES = ("entropy", "gini", "top90", "top90_share", "center", "center_share", "early_late")


def measures(relevance) -> dict[str, float]:
    """The figures of (N,) relevance, a tensor or an array of finite numbers, by their names."""
    magnitude = np.abs(np.asarray(relevance, np.float64))
    total, n = magnitude.sum(), len(magnitude)
    if total == 0:
        return dict.fromkeys(NAMES, math.nan)
    p = magnitude / total
    some = p[p > 0]
    ascending = np.sort(magnitude)
    # A sum that rounding leaves a hair below 0.9 of the whole holds it; 0.9 itself is no binary fraction.
    held = np.cumsum(ascending[::-1]) >= 0.9 * total * (1 - 1e-12)
    top90 = int(np.argmax(held)) + 1
    center = float((np.arange(n) * p).sum())
    early, late = magnitude[: n // 2].sum(), magnitude[n // 2 :].sum()
    return {
        "entropy": float(-(some * np.log(some)).sum() / math.log(n)) if n > 1 else 0.0,
        "gini": float(((2 * np.arange(1, n + 1) - n - 1) * ascending).sum() / (n * total)),
        "top90": float(top90),
        "top90_share": top90 / n,
        "center": center,
        "center_share": center / (n - 1) if n > 1 else 0.5,
        "early_late": float(early / late) if late > 0 else math.inf,
    }
