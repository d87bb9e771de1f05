"""The five figures of a relevance vector, against their definitions spelt out, and of vectors to add up by hand."""

import math

import numpy as np
import pytest

from lrp_fast.study.measures import NAMES, measures


def spelt_out(r):
    x = [abs(one) for one in r]
    n, total = len(x), math.fsum(x)
    p = [one / total for one in x]
    held, count = 0.0, 0
    for one in sorted(x, reverse=True):
        held, count = held + one, count + 1
        if held >= 0.9 * total:
            break
    differences = sum(abs(a - b) for a in x for b in x)  # Gini's mean difference
    center = sum(i * one for i, one in enumerate(p))
    return {
        "entropy": -sum(one * math.log(one) for one in p if one) / math.log(n),
        "gini": differences / (2 * n * total),
        "top90": count,
        "top90_share": count / n,
        "center": center,
        "center_share": center / (n - 1),
        "early_late": sum(x[: n // 2]) / sum(x[n // 2 :]),
    }


@pytest.mark.parametrize("n", [2, 3, 17, 100])
def test_they_are_what_they_say(n):
    r = np.random.default_rng(n).normal(size=n)
    found, truth = measures(r), spelt_out(r.tolist())
    assert tuple(found) == NAMES
    for name in NAMES:
        assert found[name] == pytest.approx(truth[name], rel=1e-12), name


def test_plain_vectors():
    one = measures([0.0, -2.0, 0.0, 0.0])
    assert one == {
        "entropy": 0.0, "gini": 0.75, "top90": 1, "top90_share": 0.25, "center": 1.0, "center_share": 1 / 3,
        "early_late": math.inf,
    }  # fmt: skip
    same = measures(np.full(10, -0.1, np.float32))
    assert same["entropy"] == pytest.approx(1) and same["gini"] == pytest.approx(0, abs=1e-12)
    assert (same["top90"], same["early_late"]) == (9, 1.0)  # of 0.1s, nine hold 0.9, which no binary fraction is
    assert measures([3.0])["entropy"] == 0 and measures([3.0])["center_share"] == 0.5
    assert all(map(math.isnan, measures([0.0, 0.0]).values()))
