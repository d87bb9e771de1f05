"""What is printed and drawn of an evaluation."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from lrp_fast.evaluate import Evaluation, Row, plots
from lrp_fast.evaluate.printed import failures, table
from lrp_fast.study import read_cases

ABOUT = {"model": "m", "cases": 4, "methods": ["a", "b"], "protocols": [], "replacement": None, "units": "tokens"}
BETTER = {"flip": {"flipped_at": "lower"}, "morf_lerf": {"area": "higher"}, "recovery": {"rank": "lower"}}


def flips():
    values = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 9.0]}
    rows = [Row(f"c{i}", name, "flip", {"flipped_at": values[name][i], "note": 1.0}) for i in range(3) for name in "ba"]
    return [*rows, Row("c3", None, None, why="it is \x1b none")]


def test_the_table():
    text = table(Evaluation(flips(), BETTER, ABOUT))
    lines = text.splitlines()
    assert lines[0] == "m, 4 cases, units tokens" and lines[2] == "flip"
    assert lines[4].split() == ["method", "n", "flipped_at,", "lower"]
    assert lines[5].split() == ["a", "3", "2", "[1,", "3]", "*"]  # the best first
    assert lines[6].split()[:3] == ["b", "3", "6"] and lines[6].split()[-2] == "p"
    assert "note" not in text and "paired sign flips" in text
    assert lines[-1].startswith("1 not judged (the case): it is ") and "\x1b" not in text


def test_means_over_different_cases_say_so():
    more = [Row("c4", "a", "flip", {"flipped_at": 2.0, "share": 0.5}), Row("c5", "a", "flip", {"flipped_at": 2.0})]
    better = {"flip": {"flipped_at": "lower", "share": "lower"}}
    text = table(Evaluation([*flips(), *more], better, ABOUT))
    lines = text.splitlines()
    assert lines[5].split() == ["a", "5", "2", "[1.4,", "2.6]", "*", "0.5", "*", "n", "1"]
    assert lines[6].split()[:2] == ["b", "3"] and lines[6].endswith("-")
    assert "where n differs, * is the best over the cases that all methods have" in lines
    assert "where n differs" not in table(Evaluation(flips(), BETTER, ABOUT))


def test_what_describes_only_is_shown_where_there_is_nothing_else():
    text = table(Evaluation([Row("c", "a", "mine", {"length": 3.0})], {"mine": {}}, ABOUT))
    assert "length" in text and "*" not in text


def test_the_commonest_failures_come_first():
    rows = [Row("c", "a", "flip", why=f"why {i}") for i in range(7)] + [Row("d", "a", "flip", why="why 6")]
    rows += [Row("e", name, "flip", why="why 5") for name in "ab"]
    lines = failures(Evaluation(rows, BETTER, ABOUT))
    assert lines[0] == "3 not judged (2 methods, flip): why 5" and lines[1] == "2 not judged (a, flip): why 6"
    assert lines[-1] == "and 2 more kinds" and len(lines) == 6


def curves():
    rows = []
    for i in range(3):
        for name in "ab":
            told = {"gone": [0.0, 0.5, 1.0], "morf_curve": [2.0, 1.0 + i, 0.0], "lerf_curve": [2.0, 2.0, 0.0]}
            rows.append(Row(f"c{i}", name, "morf_lerf", {"area": 1.0}, told))
    return Evaluation(rows, BETTER, ABOUT)


def test_curves_are_read_at_equal_shares():
    found = plots.curves_of(curves())
    assert list(found) == ["a", "b"] and found["a"]["morf_curve"].shape == (3, 21)
    assert np.allclose(found["a"]["morf_curve"][:, 10], [1, 2, 3])
    assert np.allclose(found["a"]["morf_curve"][:, 5], [1.5, 2, 2.5])
    assert list(plots.curves_of(curves(), ["b"])) == ["b"]
    with pytest.raises(ValueError, match="there are no curves"):
        plots.curves_of(Evaluation(flips(), BETTER, ABOUT))


def needles():
    cases = read_cases(
        [{"id": f"{length}-{depth}-{i}", "prompt": "a", "depth": depth, "length": length}
         for length in (256, 512) for depth in (0.0, 0.5) for i in range(2)]
    )  # fmt: skip
    rows = [
        Row(case.id, "a", "recovery", {"rank": 1.0 + case.fields["length"] * case.fields["depth"] + int(case.id[-1])})
        for case in cases[:-2]
    ]
    return Evaluation([*rows, Row("512-0.5-0", "a", "recovery", why="no")], BETTER, ABOUT), cases


def test_ranks_by_depth_and_length():
    grids, depths, lengths = plots.grids_of(*needles())
    assert (depths, lengths) == ([0.0, 0.5], [256, 512])
    assert np.allclose(grids["a"], [[1.5, 1.5], [129.5, np.nan]], equal_nan=True)
    with pytest.raises(ValueError, match="there are no ranks of needles"):
        plots.grids_of(Evaluation(flips(), BETTER, ABOUT), needles()[1])


@pytest.mark.parametrize("draw", [lambda: plots.removal_curves(curves()), lambda: plots.needle_ranks(*needles())])
def test_pictures_are_the_same_each_time_and_change_nothing(draw):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    one, other = draw(), draw()
    assert one == other and ElementTree.fromstring(one).tag.endswith("svg")
    assert b"dc:date" not in one and dict(matplotlib.rcParams) == before
