"""Figures of many numbers against scipy's and numpy's, and what is not defined."""

import math
import warnings

import numpy as np
import pytest

from lrp_fast.study.statistics import RESAMPLES, correlation, ecdf, mean_interval, ranks


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_distribution_steps_at_its_values_ties_together():
    x, share = ecdf([3.0, 1.0, math.nan, 1.0, -math.inf, math.inf])
    assert x.tolist() == [1.0, 3.0] and share.tolist() == [0.6, 0.8]  # one of five is below, and one above all
    assert ecdf([2.0, 2.0])[1].tolist() == [1.0]
    assert [one.tolist() for one in ecdf([math.nan])] == [[], []] == [one.tolist() for one in ecdf([])]


@pytest.mark.parametrize("n", [3, 4, 57, 3000])
@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_correlations_are_scipys(n, scale):
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(n)
    x = draw.integers(0, 6, n) + 0.0  # with ties
    x[:3] = 0, 1, 5
    y = x + draw.normal(size=n)
    pearson, spearman, why = correlation(scale * x, y)
    assert why is None
    assert pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_line_is_1_and_no_more():
    x = np.random.default_rng(0).normal(size=101)
    assert correlation(x, 3 * x + 1)[:2] == (pytest.approx(1.0, abs=1e-15), 1.0)
    assert correlation(x, 3 * x + 1)[0] <= 1 and correlation(x, -x)[0] >= -1
    assert correlation(x, -np.exp(x))[1] == pytest.approx(-1.0, abs=1e-15)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ([], [], "there are fewer than 3 pairs"),
        ([1.0, 2.0], [1.0, 5.0], "there are fewer than 3 pairs"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "one side is constant, 1"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "one side is constant, 0"),
    ],
)
def test_what_is_not_defined_says_why(x, y, why):
    *found, said = correlation(x, y)
    assert np.isnan(found).all() and said.startswith(why)


def test_numbers_that_differ_by_their_last_bit():
    x = np.full(5, 0.1)
    x[2] = np.nextafter(0.1, 1)
    pearson, spearman, why = correlation(x, [0.0, 0.0, 1.0, 0.0, 0.0])
    assert pearson == pytest.approx(1.0) and spearman == pytest.approx(1.0) and why is None


def test_an_interval_is_that_of_the_means_drawn():
    values = np.random.default_rng(3).normal(2.0, 1.0, 40)
    mean, low, high = mean_interval(values, seed=5)
    assert mean == values.mean() and (mean, low, high) == mean_interval(values, seed=5)
    assert (low, high) != mean_interval(values, seed=6)[1:]
    half = 1.96 * values.std() / math.sqrt(40)  # what the percentiles come to, but for the draw
    assert mean - low == pytest.approx(half, rel=0.12) and high - mean == pytest.approx(half, rel=0.12)


def test_many_values_are_drawn_in_parts(monkeypatch):
    import lrp_fast.study.statistics as module

    values = np.random.default_rng(3).normal(size=50)
    whole = mean_interval(values)
    for at_once in (50, 50 * 7, 50 * RESAMPLES):
        monkeypatch.setattr(module, "_AT_ONCE", at_once)
        assert mean_interval(values) == whole


def test_intervals_of_few_and_of_equal_values():
    assert mean_interval([4.0, 4.0, 4.0]) == (4.0, 4.0, 4.0)
    mean, *interval = mean_interval([4.0])
    assert mean == 4.0 and np.isnan(interval).all() and np.isnan(mean_interval([])).all()


def test_ranks_of_equal_ones_are_their_mean():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
