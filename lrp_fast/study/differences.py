"""Two runs of the same cases: what cannot be compared, what goes together, and what flips."""

from __future__ import annotations

import json
import math

import numpy as np

from ..reading import cut
from .runs import Run
from .statistics import correlation, mean_interval
from .table import spelled_out

LEFT_OUT = ("base", "run", "id", "what", "why")
FIGURES = (
    *("base", "run", "figure", "pairs", "not_finite", "base_mean", "run_mean"),
    *("difference", "low", "high", "pearson", "spearman", "why"),
)
FLIPS = ("base", "run", "id", "what", "before", "after", "same_tokens")


def differ(base: Run, run: Run, id: str) -> bool:
    """Whether an id is of two prompts; of a case that could not be read, nobody knows."""
    asked = [one.asked.get(id) for one in (base, run)]
    return None not in asked and asked[0] != asked[1]


def left_out(base: Run, run: Run, cases) -> list[dict]:
    """A row of each id that either run has and that is not compared."""
    found = []
    statuses = [cases[f"status.{one.name}"] for one in (base, run)]
    for id, compared, *both in zip(cases.id, cases[f"compared.{run.name}"], *statuses, strict=True):
        if compared or both == ["missing", "missing"]:
            continue
        if differ(base, run, id):
            what, why = "another prompt", _two_prompts(base, run, id)
        else:
            apart = [(one, status) for one, status in zip((base, run), both, strict=True) if status != "done"]
            what = ", ".join(f"{status} in {one.name}" for one, status in apart)
            why = "; ".join(_why(one, id, status) for one, status in apart)
        found.append({"base": base.name, "run": run.name, "id": id, "what": what, "why": why})
    return found


def _why(run: Run, id: str, status: str) -> str:
    return f"{run.name} has no such id" if status == "missing" else f"{run.name}: {run.table.why[id]}"


def _two_prompts(base: Run, run: Run, id: str) -> str:
    asked = [one.asked[id] for one in (base, run)]
    if all(isinstance(one, list) and one and isinstance(one[0], int) for one in asked):
        return (
            "its token ids are others, as those of two tokenizers always are: give both runs text, or the same field "
            '"asked"'
        )
    words = [cut(spelled_out(json.dumps(what, ensure_ascii=False))) for what in asked]
    return f"it asks {words[0]} in {base.name}, and {words[1]} in {run.name}"


def figures(base: Run, run: Run, cases, seed: int) -> list[dict]:
    """A row of each figure that both runs have."""
    found = []
    compared = cases[f"compared.{run.name}"]
    for name in (one for one in base.figures if one in run.figures):  # graphs, both may have or not
        x, y = (cases[f"{name}.{one.name}"][compared].to_numpy() for one in (base, run))
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        row = {"base": base.name, "run": run.name, "figure": name, "pairs": len(x), "not_finite": int((~finite).sum())}
        row |= {"base_mean": _mean(x), "run_mean": _mean(y)}
        row |= dict(zip(("difference", "low", "high"), mean_interval(y - x, seed), strict=True))
        row |= dict(zip(("pearson", "spearman", "why"), correlation(x, y), strict=True))
        found.append(row)
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def flips(base: Run, run: Run, cases) -> list[dict]:
    """A row of each case and what of it is otherwise in the second run."""
    found = []
    names = ("status", "value", "preferred", "finding")
    for row in cases.to_dict("records"):
        before, after = ({name: row[f"{name}.{one.name}"] for name in names} for one in (base, run))
        told = {name: tuple(_text(one[name]) for one in (before, after)) for name in names[2:]}
        changed = {name: pair for name, pair in told.items() if pair[0] != pair[1]}
        if not row[f"compared.{run.name}"]:
            changed = {}
            both = before["status"], after["status"]
            if both[0] != both[1] and "missing" not in both and not differ(base, run, row["id"]):
                changed["status"] = both
        elif np.sign(before["value"]) != np.sign(after["value"]):
            changed = {"sign": tuple(f"{one['value']:.6g}" for one in (before, after))} | changed
        for what, (one, other) in changed.items():
            told = {"base": base.name, "run": run.name, "id": row["id"], "what": what, "before": one, "after": other}
            found.append(told | {"same_tokens": row[f"same_tokens.{run.name}"]})
    return found


def _text(value) -> str | None:
    """pandas has NaN where there is no text, which is not even itself."""
    return value if isinstance(value, str) else None
