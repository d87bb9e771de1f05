"""What is said of many numbers: how they are distributed, how two go together, how sure a mean is.

All of it in float64. What is not defined is NaN, and `correlation` says why; nothing warns.
"""

from __future__ import annotations

import math

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 1 << 22  # numbers drawn at once


def read_seed(seed) -> int:
    """ValueError for what draws nothing."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, not {seed!r}")
    return seed


def ecdf(values) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution function: where it steps, ascending, and the share of values at most that, after it.

    NaN does not count. What is infinite does, so that the last share is below 1 where the right end is out of sight:
    infinite steps are not among those returned.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    steps, counts = np.unique(values, return_counts=True)
    shares = counts.cumsum() / max(1, len(values))
    seen = np.isfinite(steps)
    return steps[seen], shares[seen]


def correlation(x, y) -> tuple[float, float, str | None]:
    """Pearson's r and Spearman's rho of pairs of finite numbers, and why there is none.

    Spearman's is Pearson's of the ranks, of which equal values share the mean. Both are NaN where a side is constant,
    and below three pairs, as two always lie on a line.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3:
        return math.nan, math.nan, "there are fewer than 3 pairs"
    for one in (x, y):
        if one.min() == one.max():
            return math.nan, math.nan, f"one side is constant, {one[0]:.4g}"
    return pearson(x, y), pearson(ranks(x), ranks(y)), None


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Of pairs of which neither side is constant."""
    x, y = map(_centred, (x, y))
    return float(np.clip((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()), -1, 1))


def _centred(values: np.ndarray) -> np.ndarray:
    """Less their mean, on a scale at which no square overflows or vanishes. They are not all equal.

    What numbers close to each other differ by is exact, and their mean is not: so the first is taken away before.
    """
    _, exponent = np.frexp(np.abs(values).max())
    values = np.ldexp(values, -exponent)
    values = values - values[0]
    values = values / np.abs(values).max()
    return values - values.mean()


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) float64, from 1; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def mean_interval(values, seed: int = 0) -> tuple[float, float, float]:
    """The mean of finite numbers and, around it, the interval that holds 0.95 of the means of as many drawn from them.

    The percentile bootstrap (Efron 1979): `RESAMPLES` times, with replacement. The same numbers and seed give the same
    interval. Of one number there is a mean and no interval (NaN), of none neither.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    if n == 1:
        return float(values[0]), math.nan, math.nan
    return float(values.mean()), *interval(values, seed)


def interval(values: np.ndarray, seed: int = 0, draws: int = RESAMPLES) -> tuple[float, float]:
    """That of `mean_interval`, of one number or more."""
    draw, n = np.random.default_rng(seed), len(values)
    rows = max(1, _AT_ONCE // n)
    means = np.concatenate(
        [values[draw.integers(0, n, (min(rows, draws - start), n))].mean(1) for start in range(0, draws, rows)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
