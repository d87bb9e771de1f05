"""Correlations of ranks, intervals by bootstrap, and a paired test."""

from __future__ import annotations

import math

import numpy as np

from ..study.statistics import RESAMPLES, interval, pearson, ranks

_BLOCK = 1024  # rows of pairs that are compared at once


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of their ranks; NaN where all of either are equal, or there are fewer than two."""
    a, b = ranks(np.asarray(one)), ranks(np.asarray(other))
    return pearson(a, b) if len(a) and np.ptp(a) and np.ptp(b) else math.nan


def kendall(one: np.ndarray, other: np.ndarray) -> float:
    """Tau-b: pairs in the same order minus pairs in the opposite, over the root of the products of the numbers of pairs
    that differ in each. NaN where all of either are equal."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    agree = differ_a = differ_b = 0.0
    for start in range(0, len(one), _BLOCK):
        a = np.sign(one[start : start + _BLOCK, None] - one)
        b = np.sign(other[start : start + _BLOCK, None] - other)
        agree, differ_a, differ_b = agree + (a * b).sum(), differ_a + (a != 0).sum(), differ_b + (b != 0).sum()
    size = math.sqrt(differ_a * differ_b)
    return float(agree) / size if size > 0 else math.nan


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = RESAMPLES) -> tuple[float, float]:
    """The percentile interval, of 0.95, of the mean of ``values``; NaN of fewer than two, which say nothing of it."""
    values = np.asarray(values, np.float64)
    return interval(values, seed, draws) if len(values) > 1 else (math.nan, math.nan)


def sign_flips(differences: np.ndarray, seed: int = 0, draws: int = 10_000) -> float:
    """The two-sided p of paired ``differences`` having mean 0: how often that of the same differences with random signs
    is at least as far from 0. Exact, over all signs, of up to 12 differences; else (1 + count) / (1 + draws)."""
    differences = np.asarray(differences, np.float64)
    count = len(differences)
    if not count:
        return math.nan
    seen = abs(differences.sum()) * (1 - 1e-12)  # rounding must not tell equal sums apart
    if count <= 12:
        signs = 1 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differences) >= seen).mean())
    generator, found = np.random.default_rng(seed), 0
    for _ in range(0, draws, 1000):
        signs = 1 - 2.0 * generator.integers(0, 2, (1000, count))
        found += int((np.abs(signs @ differences) >= seen).sum())
    return (1 + found) / (1 + draws)
