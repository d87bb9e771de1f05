"""Plots are SVG that opens anywhere: well-formed, of text, alike each time, and with nobody else's settings."""

import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
pandas = pytest.importorskip("pandas")

from lrp_fast.study import plots  # noqa: E402

NAMES = ["_run", "a <b> & 'c'", "cost $5_x$", "\u65e5\u672c \u05e9", "line\nend \x1b[31m\x00"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts(svg):
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def rows(runs, segments):
    columns = {f"{name}{end}": 1.0 for name in ("relevance", "share") for end in ("", "_low", "_high")}
    found = [{"run": run, "segment": one, "cases": 9 - i} for run in runs for i, one in enumerate(segments)]
    return pandas.DataFrame([row | columns for row in found])


def drawn():
    values = np.random.default_rng(0).normal(size=50)
    return {
        "ecdf": plots.ecdf({name: values + i for i, name in enumerate(NAMES)}, "value"),
        "scatter": plots.scatter(values, values**2, NAMES[1], NAMES[2], NAMES[3]),
        "segments": plots.segment_means(rows(NAMES, NAMES)),
        "histogram": plots.histogram(values, NAMES[3]),
        "profile": plots.profile(np.abs(values).reshape(10, 5), NAMES[3]),
        "by length": plots.by_length(np.arange(1, 51), values, NAMES[3]),
    }


@pytest.mark.parametrize("kind", ["ecdf", "scatter", "segments"])
def test_names_are_text_and_nothing_else(kind):
    svg = drawn()[kind]
    found = " ".join(texts(svg))
    for name in {"scatter": NAMES[1:4]}.get(kind, NAMES[:4]):
        assert name in found
    if kind != "scatter":
        assert "line end \\x1b[31m\\x00" in found
    assert svg.startswith("<svg ") and svg.endswith("</svg>\n") and svg.count("<svg") == 1


@pytest.mark.parametrize("kind", ["ecdf", "scatter", "segments", "histogram", "profile", "by length"])
def test_an_element_may_stand_in_a_page_beside_others(kind):
    svg = drawn()[kind]
    assert "<style" not in svg and "<script" not in svg and "<metadata" not in svg
    assert not re.findall(r'(?:href|src)="(?!#)', svg)
    assert set(re.findall(r"https?://[^\"]*", svg)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = re.findall(r'id="([^"]+)"', svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    assert len(ids) == len(set(ids)) and used <= set(ids)
    others = {one for other, text in drawn().items() if other != kind for one in re.findall(r'id="([^"]+)"', text)}
    assert not others & set(ids)


def test_the_same_numbers_are_the_same_bytes_whatever_the_settings():
    first = drawn()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert drawn() == first
        assert dict(matplotlib.rcParams) == before


def test_another_process_draws_the_same_and_leaves_pyplot_alone():
    code = (
        "import sys; from lrp_fast.study import plots; assert 'matplotlib' not in sys.modules\n"
        "print(plots.ecdf({'a': [1.0, 2.5]}, 'x'), end='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout.decode() == plots.ecdf({"a": [1.0, 2.5]}, "x")


@pytest.mark.parametrize(
    "values",
    [[], [np.nan], [1.0], [2.0, 2.0, 2.0], [0.0, 0.0], [1.0, np.inf], [1.0, 1.0 + 1e-12], [1e-300, 1e300], [-1e9, 1.0]],
    ids=str,
)
@pytest.mark.parametrize("log", [False, True])
def test_few_and_odd_numbers(values, log):
    assert f"a ({sum(not np.isnan(one) for one in values)} case" in " ".join(texts(plots.ecdf({"a": values}, "x", log)))
    assert ElementTree.fromstring(plots.scatter(values, values[::-1], "x", "y", "said", log)) is not None
    assert ElementTree.fromstring(plots.histogram(values, "x")) is not None
    assert ElementTree.fromstring(plots.by_length(np.arange(1, len(values) + 1), values, "x")) is not None


def points(svg):
    """Where the marks of a plot are, in the order of drawing."""
    groups = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}g") if "fill: #0072b2" in one.get("style", "")]
    return [(float(one.get("x")), float(one.get("y"))) for group in groups for one in group.iter(f"{SVG}use")]


def test_a_point_a_pair_up_and_to_the_right():
    (left, low), (right, high) = points(plots.scatter([1.0, 2.0, np.nan], [1.0, 2.0, 3.0], "x", "y"))
    assert left < right and low > high  # of a picture, down is more


@pytest.mark.parametrize(
    "values", [[-1.0, 2.0, 3.5], [3.0, 4.0], [7.0], [-2.0, -1.0, -1.5, -1.25], [-9.0, *range(1, 2000), 1e6]], ids=len
)
def test_a_histogram_counts_every_case_on_its_side_of_0(values):
    edges = plots._edges(np.array(values))
    assert np.all(np.diff(edges) > 0) and len(edges) <= 33
    assert np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].sum() == len(values)
    if edges[0] < 0 < edges[-1]:
        assert 0 in edges


def test_a_histogram_has_columns_of_two_colors():
    svg = plots.histogram([-1.0, 2.0, 3.5], "value")
    assert "fill: #0072b2" in svg and "fill: #d55e00" in svg
    assert "fill: #0072b2" not in plots.histogram([1.0, 2.0, 3.5], "value")


def test_of_cases_by_length_groups_have_medians():
    tokens = np.arange(100) + 1
    said = "line: medians of equal groups"
    assert said in plots.by_length(tokens, tokens / 100, "x")
    assert said not in plots.by_length(tokens[:15], tokens[:15], "x")


def test_of_many_segments_those_of_the_most_cases_are_shown():
    found = plots.segment_means(rows(["a"], [f"segment {i}" for i in range(60)]).assign(cases=range(60)))
    shown = texts(found)
    assert "segment 59" in shown and "segment 36" in shown and "segment 35" not in shown
    assert shown.index("segment 36") < shown.index("segment 59")
    assert any("of 60 segments, the 24 of the most cases" in one for one in shown)


def test_thousands_of_cases_stay_small():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 3000))
    assert len(plots.ecdf({"a": x, "b": y}, "value")) < 150_000
    assert len(points(plots.by_length(np.abs(x) + 1, y, "a"))) == 3000 and len(plots.by_length(x, y, "a")) < 200_000
    assert len(points(plots.scatter(x, y, "a", "b"))) == 3000 and len(plots.scatter(x, y, "a", "b")) < 200_000


def test_without_matplotlib_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="plots are drawn with matplotlib: pip install 'lrp-fast\\[study\\]'"):
        plots.ecdf({"a": [1.0]}, "x")
