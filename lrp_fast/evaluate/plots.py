"""Pictures of an evaluation, as SVG: curves with their intervals, and ranks of needles by depth and length.

The same numbers give the same bytes, with one release of matplotlib (the extra ``bench``), of which nothing but figures
is used: no backend, and no setting of the caller's changes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np

from .result import Evaluation
from .statistics import bootstrap

_SHARES = np.linspace(0, 1, 21)
_COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#393b79", "#637939", "#843c39",
)  # fmt: skip


def removal_curves(found: Evaluation, methods: Sequence[str] | None = None, seed: int = 0) -> bytes:
    """The protocol "morf_lerf": the mean preference over the share of units that is gone, most relevant first and least
    relevant first, with 95 % bootstrap intervals over the cases.

    Raises:
        ValueError: for an evaluation without that protocol.
        ModuleNotFoundError: without matplotlib.
    """
    of_each = curves_of(found, methods)
    figure = _figure((8, 3.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(
        panels, ("morf_curve", "lerf_curve"), ("most relevant first", "least relevant first"), strict=True
    ):
        for number, (method, curves) in enumerate(of_each.items()):
            colour, lines = _COLOURS[number % len(_COLOURS)], curves[name]
            bounds = np.array([bootstrap(column, seed, draws=500) for column in lines.T])
            axes.plot(_SHARES, lines.mean(0), color=colour, linewidth=1.2, label=method)
            axes.fill_between(_SHARES, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.12, linewidth=0)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("share that is gone", fontsize=8)
        _plain(axes)
    panels[0].set_ylabel("preference", fontsize=8)
    panels[1].legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


def curves_of(found: Evaluation, methods: Sequence[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Of each method (C, 21) of each of the two curves of "morf_lerf" at equal shares, a row a case."""
    rows = [row for row in found.rows if row.protocol == "morf_lerf" and row.curves]
    names = [name for name in dict.fromkeys(row.method for row in rows) if methods is None or name in methods]
    if not names:
        raise ValueError('there are no curves: evaluate by the protocol "morf_lerf"')
    return {
        name: {kind: _at_shares(rows, name, kind) for kind in ("morf_curve", "lerf_curve")}
        for name in names
    }


def _at_shares(rows: list, method: str, kind: str) -> np.ndarray:
    mine = [row.curves for row in rows if row.method == method]
    return np.array([np.interp(_SHARES, curves["gone"], curves[kind]) for curves in mine])


def needle_ranks(found: Evaluation, cases: Iterable, methods: Sequence[str] | None = None) -> bytes:
    """The protocol "recovery": the rank of a needle's best unit (1: the first of all), by how deep the needle lies and
    how long the prompt is; a heat map a method, the mean over the cases of a field.

    Args:
        cases: those that were judged, with fields ``depth`` and ``length``; others count nowhere.

    Raises:
        ValueError: if no case of such was judged.
        ModuleNotFoundError: without matplotlib.
    """
    grids, depths, lengths = grids_of(found, cases, methods)
    columns = min(4, len(grids))
    rows = -(-len(grids) // columns)
    figure = _figure((2.1 * columns + 0.8, 1.8 * rows + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(grids) :]:
        axes.set_visible(False)
    from matplotlib.colors import LogNorm

    most = max(float(np.nanmax(grid)) for grid in grids.values())
    scale = LogNorm(1, max(2.0, most))
    for axes, (method, grid) in zip(panels, grids.items(), strict=False):
        picture = axes.imshow(grid, norm=scale, cmap="viridis_r", aspect="auto", origin="upper")
        axes.set_title(method, loc="left", fontsize=7)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=6, rotation=45)
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=6)
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "white" if scale(value) > 0.5 else "black"
                axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=5, color=colour)
    figure.supxlabel("tokens", fontsize=8)
    figure.supylabel("depth", fontsize=8)
    bar = figure.colorbar(picture, ax=panels.tolist(), shrink=0.6)
    bar.set_label("rank", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return _svg(figure)


def grids_of(
    found: Evaluation, cases: Iterable, methods: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], list[float], list[int]]:
    """Of each method (depths, lengths), NaN where no case lies; depths and lengths."""
    where = {
        case.id: (case.fields["depth"], case.fields["length"])
        for case in cases
        if case.fields.get("depth") is not None and case.fields.get("length") is not None
    }
    rows = [row for row in found.rows if row.protocol == "recovery" and row.why is None and row.case in where]
    names = [name for name in dict.fromkeys(row.method for row in rows) if methods is None or name in methods]
    if not names:
        raise ValueError('there are no ranks of needles: evaluate by "recovery", cases with a depth and a length')
    depths = sorted({where[row.case][0] for row in rows})
    lengths = sorted({where[row.case][1] for row in rows})
    grids = {}
    for name in names:
        sums, counts = np.zeros((2, len(depths), len(lengths)))
        for row in rows:
            if row.method == name:
                depth, length = where[row.case]
                place = depths.index(depth), lengths.index(length)
                sums[place] += row.measures["rank"]
                counts[place] += 1
        grids[name] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return grids, depths, lengths


def _figure(size: tuple[float, float]):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures are drawn with matplotlib: pip install matplotlib") from error
    return Figure(figsize=size, layout="constrained")


def _plain(axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _svg(figure) -> bytes:
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lrp_fast", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
