"""A case's relevance in few cells."""

import numpy as np
import pytest

from lrp_fast.study.pages.strips import CELLS, PARTS, profile, strip


def test_levels_are_shares_of_the_greatest():
    assert strip([4.0, -4.0, 0.0, 2.0, -1.0]) == ("qAYeS", 0)
    assert strip([0.0, 0.0]) == ("YY", 0)


def test_special_tokens_do_not_count():
    assert strip([100.0, 1.0, -2.0], [True, False, False]) == (".eA", 2)
    assert strip([1.0, 2.0], [True, True]) == ("..", None)


def test_of_many_tokens_a_cell_has_the_strongest():
    values = np.zeros(1000)
    values[[0, 1, 500, 999]] = [1.0, -3.0, 2.0, 6.0]
    text, strongest = strip(values, [False] * 1000)
    assert len(text) == CELLS and strongest == 999
    assert (text[0], text[-1]) == ("M", "q") and text.count("Y") == CELLS - 3
    special = [i in (1, 999) for i in range(1000)]
    assert strip(values, special)[0][0] == "e"


def test_a_cell_of_special_tokens_is_told_apart():
    special = [i < 30 for i in range(96)]
    text, _ = strip(np.ones(96), special)
    assert text == "." * 15 + "q" * 33


@pytest.mark.parametrize("length", [1, 7, 20, 33, 1000])
def test_a_profile_is_how_relevance_lies(length):
    values = np.random.default_rng(length).normal(size=length)
    found = profile(values)
    assert found.shape == (PARTS,) and found.sum() == pytest.approx(1)
    for part in range(PARTS + 1):  # what lies before it, a token evenly over its place
        place = part * length / PARTS
        inside = np.clip(place - np.arange(length), 0, 1)
        assert found[:part].sum() == pytest.approx((np.abs(values) * inside).sum() / np.abs(values).sum())
    assert profile(np.zeros(length)) is None and profile(values, [True] * length) is None
