"""What is perturbed together."""

import pytest

from lrp_fast.evaluate.units import units_of

FREE = [False] * 7


def test_tokens_are_units_of_their_own_but_special_ones():
    assert units_of("tokens", 4, [True, False, False, True]) == [(1, 2), (2, 3)]


def test_runs_end_at_special_tokens():
    fixed = [True, False, False, False, True, False, False]
    assert units_of(2, 7, fixed) == [(1, 3), (3, 4), (5, 7)]
    assert units_of(100, 7, FREE) == [(0, 7)]


def test_sentences_end_with_their_last_sign():
    tokens = ["A", " b", '."', " C", "?\n", " D", " 1.5"]
    assert units_of("sentences", 7, FREE, tokens) == [(0, 3), (3, 5), (5, 7)]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("words", TypeError, 'must be "tokens", "sentences" or a number'),
        (True, TypeError, "must be"),
        (0, ValueError, "1 or more"),
        ("sentences", ValueError, "give tokenizer="),
    ],
)
def test_others_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        units_of(given, 7, FREE)
    with pytest.raises(ValueError, match="nothing to perturb"):
        units_of("tokens", 2, [True, True])
