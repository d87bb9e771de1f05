"""The comparison page: what differs between runs, and their cases side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import plots
from ..comparison import Comparison
from ..folder import key
from ..runs import FIGURES, WIDE
from ..table import spelled_out
from .columns import Column, embedded
from .head import counted, figure, number, small_table
from .index import Row

_DRAWN = ("value", "entropy", "center_share")
_FLIPS = {
    "sign": "the value's sign",
    "preferred": "the token preferred",
    "finding": "the finding",
    "status": "the status",
}
HELP = (
    "A heading sorts, again the other way, and a third time as they came. A strip shows a case's input tokens from "
    "left to right, scaled by its own maximum in that run, and leads to the case's page of that run."
)


def data(compared: Comparison, rows: list[list[Row]], places: list[str]) -> dict:
    """What the page reads; of each run its rows, and where its pages are."""
    base, *others = (run.name for run in compared.runs)
    ids = compared.cases.id.tolist()
    by_id = [{spelled_out(row.case.id): row for row in own} for own in rows]
    names = {id: row.case.id for own in by_id for id, row in own.items()}
    columns = _columns(compared, [[own.get(id) for id in ids] for own in by_id], places)
    shown, left_out = embedded(columns, [key(names[id]) for id in ids])
    counts = [int(compared.cases[f"compared.{name}"].sum()) for name in others]
    said = ", ".join(f"{count:,} with {name}" for count, name in zip(counts, others, strict=True))
    notes = [f"Columns that the page has no room for: {', '.join(left_out)}."] if left_out else []
    for name in others:
        apart = int((compared.cases[f"compared.{name}"] & ~compared.cases[f"same_tokens.{name}"]).sum())
        if apart:
            notes.append(
                f"In {apart:,} cases {base} and {name} explain other tokens: "
                "their values are margins of different things."
            )
    return shown | {
        "title": f"{base} compared with {' and '.join(others)}",
        "subtitle": f"{len(ids):,} cases; of {base}'s, compared: {said}.",
        "links": [(name, f"{place}index.html") for name, place in zip((base, *others), places, strict=True)],
        "facts": [(run.name, _told(run.manifest)) for run in compared.runs],
        "notes": notes,
        "figures": list(_figures(compared)),
        "tables": list(_tables(compared)),
        "help": HELP,
    }


def _told(manifest: dict) -> str:
    return f"{manifest['model']}, {manifest['rules']['name']}, {manifest['dtype']}"


def _columns(compared: Comparison, rows: list[list[Row | None]], places: list[str]) -> Iterator[Column]:
    """Of each kind a column a run, side by side."""
    cases, names = compared.cases, [run.name for run in compared.runs]
    first = names[0]

    def of(what: str, name: str) -> list:
        return [None if one is None or one != one else one for one in cases[f"{what}.{name}"].tolist()]

    yield Column(
        "case", "case", "case", cases.id.tolist(), shown=True, narrow=True, at=f"{places[0]}cases/", linked="strip.0"
    )  # fmt: skip
    for nth, name in enumerate(names):
        yield Column(f"value.{nth}", f"value, {name}", "signed", of("value", name), shown=True, narrow=True)
    for nth, name in enumerate(names[1:], 1):
        change = (cases[f"value.{name}"] - cases[f"value.{first}"]).where(cases[f"compared.{name}"])
        change = [None if one != one else one for one in change.tolist()]
        title = "change" if len(names) == 2 else f"change, {name}"
        yield Column(f"change.{nth}", title, "signed", change, f"value in {name} less that in {first}", shown=True)
    for nth, (name, own, place) in enumerate(zip(names, rows, places, strict=True)):
        strips = [None if row is None else row.strip for row in own]
        yield Column(
            f"strip.{nth}", f"relevance, {name}", "strip", strips, "the input tokens from left to right",
            shown=True, narrow=nth < 2, at=f"{place}cases/", linked=f"strip.{nth}", instead=f"why.{nth}",
        )  # fmt: skip
        why = ["the run has no such case" if row is None else row.why for row in own]
        yield Column(f"why.{nth}", f"why, {name}", "why", why, "why there is no result")
    for nth, name in enumerate(names[1:], 1):
        flips = compared.flips[compared.flips.run == name].groupby("id", sort=False).what.agg(", ".join).to_dict()
        title = "otherwise" if len(names) == 2 else f"otherwise, {name}"
        yield Column(
            f"flips.{nth}", title, "text", [flips.get(id) for id in cases.id], f"what is otherwise than in {first}",
            shown=True, facet=True,
        )  # fmt: skip
    for what in ("preferred", "target", "contrast"):
        for nth, name in enumerate(names):
            about = {"preferred": "the model's own first choice"}.get(what, "")
            shown = what != "contrast"
            yield Column(f"{what}.{nth}", f"{what}, {name}", "token", of(what, name), about, shown=shown)
    for nth, name in enumerate(names):
        status = of("status", name)
        mixed = any(one != "done" for one in status)
        yield Column(f"status.{nth}", f"status, {name}", "text", status, shown=mixed, facet=True)
        yield Column(f"finding.{nth}", f"finding, {name}", "text", of("finding", name), shown=True, facet=True)
    same = [all(row) for row in cases[[f"same_tokens.{name}" for name in names[1:]]].to_numpy()]
    about = "whether all explain the same target and contrast"
    yield Column("same_tokens", "same tokens", "plain", same, about, facet=True)
    for what in FIGURES[1:]:
        for nth, name in enumerate(names):
            kind = "count" if what in ("target_rank", "contrast_rank", "top90") else "plain"
            values = of(what, name)
            if what.endswith("_rank"):  # as pages count: 1 is the first
                values = [None if one is None else int(one) + 1 for one in values]
            yield Column(f"{what}.{nth}", f"{what.replace('_', ' ')}, {name}", kind, values)


def _figures(compared: Comparison) -> Iterator[dict]:
    base, *others = (run.name for run in compared.runs)
    cases = compared.cases
    rows = {(row["run"], row["figure"]): row for row in compared.figures.to_dict("records")}
    for name in _DRAWN:
        values = {run: cases[f"{name}.{run}"][cases.shared].to_numpy(float) for run in (base, *others)}
        count = int(cases.shared.sum())
        label = plots.words(name)
        middles = ", ".join(f"{run} {number(_median(one))}" for run, one in values.items())
        says = f"Share of the {count:,} cases that all runs share whose {label} is at most that. Medians: {middles}."
        yield figure(f"Distribution of the {label}", says, plots.ecdf(values, label, name in WIDE))
        for run in others:
            both = cases[cases[f"compared.{run}"]]
            x, y = (both[f"{name}.{one}"].to_numpy(float) for one in (base, run))
            said = plots.correlated(rows[run, name])
            says = f"{_upper(label)} of each case in {run} over that in {base}. {said}."
            svg = plots.scatter(x, y, base, run, said, name in WIDE)
            yield figure(f"{_upper(label)}, case by case", says, svg)
    if len(compared.segments):
        says = (
            "Mean over the cases that all runs share of a segment's sum of relevance, and its 0.95 bootstrap interval."
        )
        yield figure("What segments carry", says, plots.segment_means(compared.segments))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _median(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _tables(compared: Comparison) -> Iterator[dict]:
    base = compared.runs[0].name
    headings = ["run", "figure", "#cases", f"#{base}", "#that run", "#difference", "#0.95 interval"]
    rows = [
        [row.run, plots.words(row.figure), f"{row.pairs:,}", number(row.base_mean), number(row.run_mean)]
        + [number(row.difference, True), _interval(row.low, row.high)]
        + [number(row.pearson, True), number(row.spearman, True)]
        for row in compared.figures.itertuples()
        if row.pairs
    ]
    help = "Over the cases compared; the interval is of the difference, by bootstrap."
    yield small_table("Means", [*headings, "#Pearson", "#Spearman"], rows, help)
    if len(compared.flips):
        words = [f"{_FLIPS[row.what]}, in {row.run}" for row in compared.flips.itertuples()]
        yield counted(f"Otherwise than in {base}", "what", words)
    if len(compared.left_out):
        yield counted("Not compared", "why", compared.left_out.what.tolist())
    if len(compared.segment_differences):
        rows = [
            [row.run, row.segment, f"{row.pairs:,}", number(row.difference, True), _interval(row.low, row.high)]
            for row in compared.segment_differences.itertuples()
        ]
        headings = ["run", "segment", "#cases", "#difference", "#0.95 interval"]
        yield small_table("Segments", headings, rows, "Difference of the sums of relevance.")


def _interval(low: float, high: float) -> str:
    return "–" if low != low else f"{number(low, True)} to {number(high, True)}"
