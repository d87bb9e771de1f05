"""Ranks, correlations, intervals and the paired test, against other people's and against all that can happen."""

import itertools
import math

import numpy as np
import pytest

from lrp_fast.evaluate.statistics import bootstrap, kendall, sign_flips, spearman


def some(seed, count=40, values=9):
    """With ties."""
    return np.random.default_rng(seed).integers(0, values, count).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_scipys(seed):
    stats = pytest.importorskip("scipy.stats")
    a, b = some(seed), some(seed + 50)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_kendall_counts_every_pair_of_many():
    a, b = some(1, 1500, 10_000), some(2, 1500, 10_000)
    i, j = np.triu_indices(1500, 1)
    a_way, b_way = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    expected = (a_way * b_way).sum() / math.sqrt((a_way != 0).sum() * (b_way != 0).sum())
    assert kendall(a, b) == pytest.approx(expected, abs=1e-12)


def test_equal_values_have_no_order():
    assert math.isnan(spearman(np.ones(4), np.arange(4))) and math.isnan(kendall(np.arange(4), np.ones(4)))


def test_sign_flips_are_all_of_them_where_there_are_few():
    values = np.array([0.3, 1.2, -0.4, 0.9, 2.0])
    sums = [abs(float(values @ signs)) for signs in itertools.product([1, -1], repeat=5)]
    assert sign_flips(values) == sum(one >= values.sum() - 1e-12 for one in sums) / 32
    assert sign_flips(np.ones(10)) == 2 / 1024  # all the same sign, and all the other


def test_sign_flips_of_many_are_near_the_normal_law():
    values = np.random.default_rng(0).normal(0.3, 1, 80)
    z = values.sum() / math.sqrt((values**2).sum())
    assert sign_flips(values) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.015)
    assert sign_flips(np.zeros(40)) == 1.0


def test_intervals_hold_the_mean_nineteen_times_of_twenty():
    held = 0
    for seed in range(200):
        low, high = bootstrap(np.random.default_rng(seed).normal(size=60), seed)
        held += low <= 0 <= high
    assert 180 <= held <= 198


def test_of_nothing_nothing_is_known():
    assert all(math.isnan(one) for one in (*bootstrap(np.array([])), sign_flips(np.array([]))))


def test_one_case_has_no_interval():
    assert all(math.isnan(one) for one in bootstrap(np.array([3.0]))) and sign_flips(np.array([3.0])) == 1
