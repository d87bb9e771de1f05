"""A study's plots, as SVG by matplotlib: for files, and as they are within a page.

Every function returns one <svg> element. Its text is text, to be read, found and selected, and no name is taken for a
formula; it names no other file or host, the same numbers give the same SVG, and a user's settings of matplotlib do not
show. Nothing of pyplot is touched; but matplotlib's settings are the process's, so that threads have to draw one after
another. The element has no ids but those that it refers to itself.

Several runs have the same color in each plot, in their order. matplotlib is asked for at the first plot.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from .runs import WIDE
from .statistics import ecdf as steps_of
from .table import check_installed

# Okabe and Ito's, which people of any color vision tell apart, the pale yellow left out.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_STYLES = ("-", "--", ":", "-.")  # once all colors are used
_MOST_SEGMENTS = 24
_SETTINGS = {
    "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "text.parse_math": False, "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.labelsize": 9, "legend.frameon": False, "legend.fontsize": 9,
    "axes.titlesize": 9, "axes.formatter.limits": (-4, 5),
}  # fmt: skip
WORDS = {
    "value": "value", "target_rank": "rank of the target (0 is the first)",
    "contrast_rank": "rank of the contrast (0 is the first)", "entropy": "normalised entropy",
    "gini": "Gini coefficient",
    "top90": "tokens that hold 0.9 of |relevance|", "top90_share": "share of tokens that hold 0.9 of |relevance|",
    "center": "centre of mass, position", "center_share": "centre of mass, 0 first to 1 last",
    "early_late": "early over late",
}  # fmt: skip


def words(figure: str) -> str:
    """A figure's name as an axis says it."""
    return WORDS.get(figure) or f"{figure.removeprefix('graph.').replace('_', ' ')}, mean over layers"


def ecdf(curves: Mapping[str, object], label: str, log: bool = False) -> str:
    """The distribution functions of some columns of numbers, by the runs' names; ``log``: of orders of magnitude.

    A run without numbers is named and has no curve.
    """

    def draw(figure) -> None:
        axes = figure.subplots()
        handles, names, seen = [], [], []
        for number, (name, values) in enumerate(curves.items()):
            values = np.asarray(values, np.float64)
            x, share = steps_of(values)
            seen.append(x)
            # From 0 at the first step on; the rest of the way is as high as the last.
            (line,) = axes.step(np.r_[x[:1], x], np.r_[0.0, share], where="post", **_line(number)) if len(x) else [None]
            handles.append(line or axes.plot([], [], **_line(number))[0])
            infinite, count = int(np.isinf(values).sum()), int((~np.isnan(values)).sum())
            names.append(f"{name} ({_cases(count)}{f', {infinite:,} infinite' if infinite else ''})")
        _scale(axes, "x", np.concatenate([*seen, np.zeros(0)]), log)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(label)
        axes.set_ylabel("share of cases at most that", rotation_mode="anchor")
        _legend(figure, handles, names)

    return _svg(draw, (4.8, 3.0 + 0.17 * len(curves)), f"distribution of {label}")


def scatter(x, y, x_label: str, y_label: str, said: str = "", log: bool = False) -> str:
    """Points of (x, y), the same figure in two runs, and where both are equal; ``said`` is a line above them.

    Pairs that are not finite have no point. Where the two are of one size, both axes have the same limits.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]

    def draw(figure) -> None:
        axes = figure.subplots()
        axes.plot(
            x, y, "o", markersize=3.2 if len(x) > 300 else 4.5, color=_COLORS[0], markeredgewidth=0,
            alpha=0.3 if len(x) > 300 else 0.55, zorder=2,
        )  # fmt: skip
        axes.set_box_aspect(1)
        for axis in "xy":
            _scale(axes, axis, np.r_[x, y], log)
        if not log and len(x):
            for line, values in ((axes.axvline, x), (axes.axhline, y)):
                if values.min() < 0 < values.max():
                    line(0, color="#cccccc", linewidth=0.8, zorder=0)
            together = np.r_[x, y]
            if min(np.ptp(x), np.ptp(y)) > 0.2 * np.ptp(together):
                margin = 0.05 * np.ptp(together)
                limits = (together.min() - margin, together.max() + margin)
                axes.set(xlim=limits, ylim=limits)
        low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
        low, high = low.max(), high.min()
        if low < high:  # where both are equal, as far as it is in sight
            axes.plot([low, high], [low, high], color="#999999", linewidth=0.8, zorder=1, scalex=False, scaley=False)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label, rotation_mode="anchor")
        axes.set_title(said, loc="left", wrap=True)

    return _svg(draw, (4.2, 4.2), f"{y_label} against {x_label}")


def segment_means(rows, label: str = "mean relevance", column: str = "relevance") -> str:
    """Rows of `lrp_fast.study.comparison.segment_means`: a mean and its interval a segment and run.

    Of more than 24 segments, those of the most cases are shown, and how many there are is said.
    """
    runs, segments = list(dict.fromkeys(rows["run"])), list(dict.fromkeys(rows["segment"]))
    counts = rows.groupby("segment")["cases"].sum()
    shown = sorted(segments, key=lambda name: -counts[name])[:_MOST_SEGMENTS]  # a stable order
    shown = [name for name in segments if name in shown]
    height = len(shown) * (0.12 + 0.16 * len(runs))

    def draw(figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color="#999999", linewidth=0.8)
        handles = []
        for number, run in enumerate(runs):
            own = rows[(rows["run"] == run) & rows["segment"].isin(shown)]
            place = np.array([shown.index(name) for name in own["segment"]])
            place = place + (number - (len(runs) - 1) / 2) * 0.7 / max(2, len(runs))
            middle, low, high = (own[column + end].to_numpy(np.float64) for end in ("", "_low", "_high"))
            axes.hlines(place, low, high, color=_color(number), linewidth=1.4)
            handles += axes.plot(middle, place, "o", color=_color(number), markersize=4)
        axes.set_yticks(range(len(shown)), [_short(name, 36) for name in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.5, -0.5)  # the first on top
        axes.set_xlabel(label)
        said = "lines: 0.95 of the means of as many cases, drawn from these"
        if len(shown) < len(segments):
            said += f"\nof {len(segments):,} segments, the {len(shown)} of the most cases"
        figure.supxlabel(said, fontsize=8)
        _legend(figure, handles, [f"{run} ({_cases(int(rows[rows['run'] == run]['cases'].max()))})" for run in runs])

    return _svg(draw, (5.6, 1.2 + 0.17 * len(runs) + max(0.5, height)), f"{label} of segments")


def pictures(comparison) -> dict[str, str]:
    """All plots of a `lrp_fast.study.comparison.Comparison`, by the names of their files.

    "ecdf-FIGURE.svg", over the cases that all runs share; of the N-th run, from 2, "scatter-FIGURE-N.svg", over those
    compared with the first; "segments.svg", "segment-shares.svg". Figures that no case has are left out.
    """
    found = {}
    base, *others = (run.name for run in comparison.runs)
    shared = comparison.cases[comparison.cases.shared]
    figures = list(dict.fromkeys(comparison.figures.figure[comparison.figures.pairs > 0]))
    for name in figures:
        columns = {run: shared[f"{name}.{run}"] for run in (base, *others) if f"{name}.{run}" in shared}
        if len(shared):
            found[f"ecdf-{name}.svg"] = ecdf(columns, words(name), name in WIDE)
    for number, run in enumerate(others, 2):
        compared = comparison.cases[comparison.cases[f"compared.{run}"]]
        for row in comparison.figures[comparison.figures.run == run].to_dict("records"):
            if row["pairs"]:
                name = row["figure"]
                columns = (compared[f"{name}.{one}"] for one in (base, run))
                labels = (f"{words(name)}: {_short(one)}" for one in (base, run))
                found[f"scatter-{name}-{number}.svg"] = scatter(*columns, *labels, correlated(row), name in WIDE)
    if len(comparison.segments):
        found["segments.svg"] = segment_means(comparison.segments)
        found["segment-shares.svg"] = segment_means(comparison.segments, "mean share of |relevance|", "share")
    return found


def correlated(row: Mapping) -> str:
    """What a row of a comparison's figures says of its pairs."""
    left = f", {row['not_finite']:,} more not finite" if row["not_finite"] else ""
    if isinstance(row["why"], str):
        return f"{_cases(row['pairs'])}{left}: no correlation, {row['why']}"
    pearson, spearman = (f"{round(row[name], 2) + 0.0:.2f}" for name in ("pearson", "spearman"))  # without -0
    return f"{_cases(row['pairs'])}{left}: Pearson {pearson}, Spearman {spearman}"


def _svg(draw: Callable, size: tuple[float, float], title: str) -> str:
    check_installed("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Characters that matplotlib's own font lacks are text here, for a font that has them.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": title})
        figure = Figure(size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)  # a browser's letters are a little wider or narrower
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _element(file.getvalue(), title)


def _element(text: str, title: str) -> str:
    """The <svg> alone, as it may stand several times in one page: what would be the page's is its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>\s*", "", text, count=1)  # of every element of a page
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g clip-path="[^"]*")>((?:\s*<use [^>]*/>)+)', _points, text)
    start, rest = text.split(">", 1)
    start = re.sub(r"\s+", " ", start) + ' role="img" stroke-linejoin="round" stroke-linecap="butt">'
    return f"{start}<title>{html.escape(title)}</title>{rest.strip()}\n"


def _points(match: re.Match) -> str:
    """Thousands of them, in a third of the characters: what all have is said once, and of a place two digits do."""
    styles = set(re.findall(r' style="[^"]*"', match[2]))
    points = re.sub(r'( [xy]="-?\d+\.\d\d)\d*"', r'\1"', match[2])
    if len(styles) != 1:
        return f"{match[1]}>{points}"
    (style,) = styles
    return f"{match[1]}{style}>{re.sub(chr(10) + ' *', chr(10), points.replace(style, ''))}"


def _line(number: int) -> dict:
    return {"color": _color(number), "linestyle": _STYLES[number // len(_COLORS) % len(_STYLES)], "linewidth": 1.6}


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _legend(figure, handles: list, names: list[str]) -> None:
    """Above all; texts are put in later, as a legend passes over names that begin with an underscore."""
    legend = figure.legend(handles, ["x"] * len(names), loc="outside upper left", ncols=1)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_short(name, 70))


def _scale(axes, axis: str, values: np.ndarray, log: bool) -> None:
    """A logarithmic axis for what is spread over orders of magnitude; with 0 on it, linear up to the smallest other."""
    if not log or not len(values) or values.max() <= 0 or values.min() < 0:
        return
    least = values[values > 0].min()
    if values.max() < 100 * least or least < 1e-200 or values.max() > 1e200:  # beyond which the margins overflow
        return
    set_scale = getattr(axes, f"set_{axis}scale")
    if values.min() > 0:
        set_scale("log")
    else:
        set_scale("symlog", linthresh=least)
    # Powers as plain numbers: matplotlib's own are formulas.
    getattr(axes, f"{axis}axis").set_major_formatter(lambda value, place: f"{value:,g}")
    getattr(axes, f"{axis}axis").set_minor_formatter(lambda value, place: "")


def _cases(count: int) -> str:
    return f"{count:,} case{'s' * (count != 1)}"


def _short(text: str, most: int = 40) -> str:
    """In one line, without what XML does not hold."""
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in " ".join(text.split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def histogram(values, label: str) -> str:
    """How many cases have which value: columns of one width, 0 at the edge of two where there are both signs.

    What is not finite has no column. Beyond the 0.5 % on either side, columns end and the outermost hold the rest.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]

    def draw(figure) -> None:
        axes = figure.subplots()
        if len(values):
            edges = _edges(values)
            counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
            middle = (edges[1:] + edges[:-1]) / 2
            colors = np.where(middle < 0, _COLORS[0], _COLORS[1])
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors, edgecolor="white", linewidth=0.5)
            axes.axvline(np.median(values), color="#333333", linewidth=1, linestyle=":")
        axes.set_xlabel(f"{label} (dotted: the median)")
        axes.set_ylabel("cases")

    return _svg(draw, (4.8, 3.2), f"histogram of {label}")


def _edges(values: np.ndarray) -> np.ndarray:
    """Of about 30 columns, 0 among them where it is within."""
    low, high = np.quantile(values, [0.005, 0.995])
    if low == high:
        return low + np.array([-0.5, 0.5]) * (abs(low) or 1)
    width = (high - low) / min(30, max(5, len(values) // 4))
    first = np.floor(low / width) if low < 0 < high else low / width
    return width * (first + np.arange(np.ceil(high / width - first - 1e-9) + 1))


def profile(shares, label: str = "share of |relevance|") -> str:
    """(cases, P) shares that P equal parts of the input have, from first to last: the mean, and the middle half."""
    shares = np.asarray(shares, np.float64)
    parts = shares.shape[1]

    def draw(figure) -> None:
        axes = figure.subplots()
        low, high = np.quantile(shares, [0.25, 0.75], axis=0)
        place = (np.arange(parts) + 0.5) / parts
        axes.bar(place, shares.mean(0), 0.86 / parts, color=_COLORS[4], linewidth=0)
        axes.vlines(place, low, high, color="#333333", linewidth=1)
        axes.axhline(1 / parts, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, None)
        axes.set_xlabel("place in the input, 0 first to 1 last (dotted: all alike)")
        axes.set_ylabel(label)

    return _svg(draw, (4.8, 3.2), f"{label} along the input")


def by_length(tokens, values, label: str) -> str:
    """Points of (number of tokens, value), and the median of each of up to ten equal groups by length."""
    tokens, values = np.asarray(tokens, np.float64), np.asarray(values, np.float64)

    def draw(figure) -> None:
        axes = figure.subplots()
        many = len(tokens) > 300
        axes.plot(
            tokens, values, "o", markersize=2.6 if many else 4, color=_COLORS[0], markeredgewidth=0,
            alpha=0.25 if many else 0.55,
        )  # fmt: skip
        order, groups = np.argsort(tokens, kind="stable"), min(10, len(tokens) // 10)
        if groups > 1:
            middles = [(np.median(tokens[one]), np.median(values[one])) for one in np.array_split(order, groups)]
            axes.plot(*zip(*middles, strict=True), "o-", color=_COLORS[1], markersize=4, linewidth=1.4)
        _scale(axes, "x", tokens, True)
        axes.set_xlabel("tokens" + (" (line: medians of equal groups)" if groups > 1 else ""))
        axes.set_ylabel(label)

    return _svg(draw, (4.8, 3.2), f"{label} by length")
