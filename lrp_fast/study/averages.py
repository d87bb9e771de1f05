"""Segments over many cases: what each carries on average, and how that differs between two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .statistics import mean_interval

_INTERVAL = ("", "_low", "_high")
_MEANS = ("run", "segment", "cases", *(name + end for name in ("relevance", "share") for end in _INTERVAL))
DIFFERENCES = (
    *("base", "run", "segment", "pairs", "difference", "low", "high"),
    *("share_difference", "share_low", "share_high"),
)


def segment_means(tables: Mapping[str, object], seed: int = 0):
    """What each segment carries on average, in each of some tables of `lrp_fast.study.table`, by their names.

    Returns:
        A DataFrame of a row a run and a segment, in the order in which they first come: run, segment, cases (that have
        it); relevance, relevance_low, relevance_high: the mean of its sum of relevance, and the bootstrap interval;
        share, share_low, share_high: the same of its part of all |relevance|, over the cases that have any.
    """
    import pandas

    found = []
    for run, rows in tables.items():
        for name, sums in _by_segment(rows).items():
            relevance, share = (np.array(one) for one in zip(*sums.values(), strict=True))
            told = {"run": run, "segment": name, "cases": len(sums)}
            told |= _interval("relevance", relevance, seed) | _interval("share", share[~np.isnan(share)], seed)
            found.append(told)
    return pandas.DataFrame(found, columns=list(_MEANS))


def _interval(name: str, values, seed: int) -> dict[str, float]:
    return dict(zip((name + end for end in _INTERVAL), mean_interval(values, seed), strict=True))


def segment_differences(base: str, run: str, base_rows, run_rows, seed: int) -> list[dict]:
    """Of two tables of the same cases, row by row, what `lrp_fast.study.comparison` says of each segment."""
    found = []
    one, other = map(_by_segment, (base_rows, run_rows))
    for name in one:
        both = [(one[name][i], other[name][i]) for i in one[name] if i in other.get(name, {})]
        if not both:
            continue
        apart = np.array([np.subtract(after, before) for before, after in both])  # (pairs, relevance and share)
        shares = apart[~np.isnan(apart[:, 1]), 1]
        row = {"base": base, "run": run, "segment": name, "pairs": len(both)}
        row |= dict(zip(("difference", "low", "high"), mean_interval(apart[:, 0], seed), strict=True))
        names = ("share_difference", "share_low", "share_high")
        found.append(row | dict(zip(names, mean_interval(shares, seed), strict=True)))
    return found


def _by_segment(rows) -> dict[str, dict[int, tuple[float, float]]]:
    """Of each segment's name, by the row's number, its sum of relevance and its share of |relevance|; NaN of none."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for number, segments in enumerate(rows["segments"]):
        if not isinstance(segments, Sequence | np.ndarray):  # of a row that is not done
            continue
        whole = sum(one["magnitude"] for one in segments)
        for one in segments:
            share = one["magnitude"] / whole if whole > 0 else math.nan
            found.setdefault(one["name"], {})[number] = (one["relevance"], share)
    return found
