"""The same cases in several runs: what changes with the model, its size, its checkpoint, or the rule.

The first run is what each of the others is compared with. Cases are paired by id, and by what they ask: the field
``asked``, which `lrp_fast.study.pairs` leaves of a prompt, or else the prompt itself. The same id with another prompt
is another case: it is not compared, but counted and named, as one such line should not cost the others their
comparison. So is what one of two runs does not have, or could not explain. Where two runs explain other tokens of the
same prompt, as pairs of two models' own mistakes do, they are compared, and ``same_tokens`` says so: their values are
margins of different things then.

The tables, as pandas DataFrames (a `Comparison`'s attributes) and as files (`lrp_fast.study.compared`):

cases       a row an id, in the first run's order, those of others behind:
                id
                status.RUN      "done", "failed", "refused"; "missing" where the run has no such id
                FIGURE.RUN      of `FIGURES`, and graph.NAME, the mean over the layers of `lrp_fast.graph.measures`
                target.RUN, contrast.RUN, preferred.RUN, finding.RUN, kind.RUN
                                texts; preferred is the model's first choice, at the last position explained
                compared.RUN    of each but the first: whether it is paired with the first, done in both
                same_tokens.RUN whether target and contrast, as text, and their kind are those of the first
                shared          whether it is compared in every run
left_out    a row a pair of runs and an id that is not compared: base, run, id, what (short, to be counted), why
figures     a row a pair of runs and a figure, over the compared cases in which both are finite:
                base, run, figure, pairs, not_finite (how many more are not), base_mean, run_mean
                difference, low, high   the mean of run - base, and its bootstrap interval
                pearson, spearman, why  why these are not defined
segments    a row a run and a segment, over the cases that all runs share: `segment_means`
segment_differences
            a row a pair of runs and a segment, over the compared cases that have it in both: base, run, segment, pairs;
            difference, low, high of run - base, of the sum of relevance, and the same of the share (share_...)
flips       a row a case that is otherwise than in the first run: base, run, id, what, before, after, same_tokens.
            what is "sign" (of the value, 0 being one of its own), "finding", "status", or "preferred"
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass

import numpy as np

from . import averages, differences
from .averages import segment_means
from .folder import Folder
from .runs import Run, read_runs
from .statistics import read_seed
from .table import check_installed

__all__ = ["Comparison", "Run", "compare", "segment_means"]

_TOLD = ("target", "contrast", "kind", "preferred", "finding")


@dataclass(frozen=True)
class Comparison:
    """Runs, and the tables that this module's docstring names."""

    runs: list[Run]
    seed: int
    cases: object
    left_out: object
    figures: object
    segments: object
    segment_differences: object
    flips: object

    def tables(self) -> dict[str, object]:
        """The tables by their names."""
        return {name: one for name, one in vars(self).items() if name not in ("runs", "seed")}

    def write(self, folder: str | os.PathLike) -> list[str]:
        """Write tables, plots and a summary: see `lrp_fast.study.compared`."""
        from .compared import write

        return write(self, folder)


def compare(*runs: str | os.PathLike | Folder, seed: int = 0) -> Comparison:
    """Compare runs of the same cases, each with the first.

    Args:
        runs: two or more folders of `lrp_fast.study.run`.
        seed: of the bootstrap intervals; the same runs and seed give the same.

    Raises:
        FileNotFoundError, ValueError: for a folder that is no run's, or whose run has no table yet; where the first run
            has no case in common with any other that both have explained, with what is in the way.
        ModuleNotFoundError: without pandas and pyarrow (the extra ``study``).
    """
    check_installed("pandas", "pyarrow")
    from pandas import DataFrame

    if len(runs) < 2:
        raise ValueError("compare takes two runs at least: the first is what the others are compared with")
    read_seed(seed)
    base, *others = read = read_runs(runs)
    ids = list(dict.fromkeys(id for run in read for id in run.table.index))
    rows = {run.name: run.table.reindex(ids) for run in read}
    cases = _cases(read, rows, ids)
    left_out = [one for run in others for one in differences.left_out(base, run, cases)]
    compared = {run.name: cases[f"compared.{run.name}"].to_numpy(bool) for run in others}
    if not any(one.any() for one in compared.values()):
        said = ", ".join(f"{number:,} {what}" for what, number in Counter(one["what"] for one in left_out).items())
        raise ValueError(f"{base.name!r} has no case in common with another run that both have explained: {said}")
    figures = [one for run in others for one in differences.figures(base, run, cases, seed)]
    flips = [one for run in others for one in differences.flips(base, run, cases)]
    apart = [
        one
        for run in others
        for one in averages.segment_differences(
            base.name, run.name, *(rows[which.name][compared[run.name]] for which in (base, run)), seed
        )
    ]
    return Comparison(
        runs=read,
        seed=seed,
        cases=cases,
        left_out=DataFrame(left_out, columns=differences.LEFT_OUT),
        figures=DataFrame(figures, columns=differences.FIGURES),
        segments=segment_means({name: one[cases.shared.to_numpy(bool)] for name, one in rows.items()}, seed),
        segment_differences=DataFrame(apart, columns=averages.DIFFERENCES),
        flips=DataFrame(flips, columns=differences.FLIPS),
    )


def _cases(runs: list[Run], rows: dict[str, object], ids: list[str]):
    """The paired table."""
    from pandas import DataFrame

    base = runs[0].name
    found: dict[str, object] = {"id": ids}
    for run in runs:
        own = rows[run.name]
        found[f"status.{run.name}"] = [one if isinstance(one, str) else "missing" for one in own.status]
        for name in run.figures:
            found[f"{name}.{run.name}"] = own[name].to_numpy(np.float64, na_value=math.nan)
        told = list(map(_told, own.to_dict("records")))
        for name in _TOLD:
            found[f"{name}.{run.name}"] = [one[name] for one in told]
    shared = np.ones(len(ids), bool)
    for run in runs[1:]:
        here = zip(ids, found[f"status.{base}"], found[f"status.{run.name}"], strict=True)
        both = [one == other == "done" and not differences.differ(runs[0], run, id) for id, one, other in here]
        same = [
            found[f"{name}.{base}"][i] == found[f"{name}.{run.name}"][i]
            for i in range(len(ids)) for name in ("target", "contrast", "kind")
        ]  # fmt: skip
        found[f"compared.{run.name}"] = both
        found[f"same_tokens.{run.name}"] = np.array(both) & np.array(same).reshape(-1, 3).all(1)
        shared &= both
    return DataFrame(found | {"shared": shared})


def _told(row: dict) -> dict[str, str | None]:
    """Of a row of a run's table, what it says in words; None of one that is not done."""
    found = {name: _token(row, name) for name in ("target", "contrast")}
    found["preferred"] = _token(row, "target" if row["target_rank"] == 0 else "runner_up")
    return found | {name: row[name] if isinstance(row[name], str) else None for name in ("kind", "finding")}


def _token(row: dict, name: str) -> str | None:
    if isinstance(row[name], str):
        return row[name]
    number = row[f"{name}_id"]
    return None if number is None or math.isnan(number) else f"token {int(number)}"  # of a run without a tokenizer
