"""The index of a run: what was run, how its cases are distributed, and all of them."""

from __future__ import annotations

import re

import numpy as np

from ...report.record import rule_words
from ...rules import Rules
from .. import plots
from ..averages import segment_means
from ..folder import Folder, key
from ..table import table
from .columns import embedded
from .head import counted, figure, number, small_table
from .index import Row, columns

_SUMMED_UP = ("value", "num_tokens", "entropy", "gini", "top90_share", "center_share", "early_late")
_TOLD = {"num_tokens": "tokens", "top90_share": "share of tokens that hold 0.9", "center_share": "centre, 0 to 1"}
HELP = (
    "A heading sorts, again the other way, and a third time as they came. A strip shows a case's input tokens from "
    "left to right: each cell the strongest relevance of the tokens it stands for, scaled by the case's own maximum, "
    "blue negative, orange positive, grey special tokens, which are left out of the scale. It leads to the case's page."
)


def data(run: Folder, name: str, rows: list[Row], links: list[tuple[str, str]], seed: int) -> dict:
    """What the page reads; ``name`` is the run's."""
    manifest = run.manifest()
    shown, left_out = embedded(columns(rows), [key(row.case.id) for row in rows])
    done = [row for row in rows if row.figures]
    notes = []
    if any(row.status == "waiting" for row in rows) or not run.table.is_file():
        notes.append("This run has not ended; what is there is shown. The command that began it goes on with it.")
    if left_out:
        notes.append(f"Columns that the page has no room for: {', '.join(left_out)}. cases.parquet has them.")
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    return shown | {
        "title": name,
        "subtitle": f"A study of {len(rows):,} cases: {said}.",
        "links": links,
        "facts": facts(manifest),
        "notes": notes,
        "figures": _figures(run, name, done, seed) if done else [],
        "tables": _tables(rows, done),
        "help": HELP,
    }


def facts(manifest: dict) -> list[tuple[str, str]]:
    versions = manifest["versions"]
    found = [("Model", manifest["model"]), ("Revision", manifest["revision"] or "")]
    found += [("Rule", rule_words(Rules(**manifest["rules"]))), ("Precision", manifest["dtype"])]
    if manifest["tolerance"]:
        found.append(("Tolerance", f"{manifest['tolerance']:g}"))
    found += [("Begun", manifest["begun"]), ("Versions", ", ".join(f"{name} {one}" for name, one in versions.items()))]
    return [(name, one) for name, one in found if one]


def _figures(run: Folder, name: str, done: list[Row], seed: int) -> list[dict]:
    values, lengths, entropy = (
        np.array([row.figures[one] for row in done], float) for one in ("value", "num_tokens", "entropy")
    )
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    kinds = {row.figures["kind"] for row in done}
    label = "logit difference" if kinds == {"difference"} else "value explained"
    says = f"The {label} of {len(done):,} cases: median {number(median)}, "
    says += f"nine tenths between {number(low)} and {number(high)}."
    found = [figure("What is explained", says, plots.histogram(values, label))]
    profiles = [row.profile for row in done if row.profile is not None]
    if profiles:
        shares = np.stack(profiles)
        first, last = shares[:, 0].mean(), shares[:, -1].mean()
        says = (
            f"Share of |relevance| along the input, special tokens left out: mean of {len(profiles):,} cases, and the "
            f"middle half of them. The first twentieth has {first:.0%}, the last {last:.0%}."
        )
        found.append(figure("Where it lies", says, plots.profile(shares)))
    seen = np.isfinite(entropy)
    if seen.any():
        says = (
            f"Normalised entropy of |relevance| over the number of tokens, {int(seen.sum()):,} cases: 0, one token has "
            "all; 1, all have the same."
        )
        svg = plots.by_length(lengths[seen], entropy[seen], plots.words("entropy"))
        found.append(figure("How it is spread", says, svg))
    if run.table.is_file():
        means = segment_means({name: table(run)}, seed)
        if len(means):
            carried = "; ".join(
                f"{one.segment} {number(one.relevance, True)} ({one.cases:,} case{'s' if one.cases > 1 else ''})"
                for one in means.head(8).itertuples()
            )
            says = f"Mean sum of a segment's relevance at the embeddings, and its 0.95 bootstrap interval: {carried}."
            found.append(figure("What segments carry", says, plots.segment_means(means)))
    return found


def _tables(rows: list[Row], done: list[Row]) -> list[dict]:
    found = []
    summed_up = []
    for name in _SUMMED_UP if done else ():
        values = np.array([row.figures[name] for row in done], float)
        values = values[~np.isnan(values)]
        if len(values):
            between = "linear" if np.isfinite(values).all() else "nearest"  # nothing lies between infinite ones
            parts = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], method=between)
            summed_up.append([_TOLD.get(name, name.replace("_", " ")), f"{len(values):,}", *map(number, parts)])
    if summed_up:
        headings = ["figure", "#cases", "#5 %", "#25 %", "#median", "#75 %", "#95 %"]
        found.append(small_table("Over the cases", headings, summed_up))
    findings = [row.more["finding"] for row in done if row.more.get("finding")]
    if findings:
        found.append(counted("Findings", "finding", findings))
    whys = [f"{row.status}: {row.why}" for row in rows if row.why]
    if whys:
        found.append(_reasons(whys))
    return found


_PARTICULAR = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?<![\w.])-?\d[\d.,]*(?<![.,])")  # texts and numbers


def _reasons(whys: list[str]) -> dict:
    """Counted; those that differ in what they quote, and in numbers, are one."""
    alike: dict[str, list[str]] = {}
    for why in whys:
        alike.setdefault(_PARTICULAR.sub("…", why), []).append(why)
    whys = [one if len(set(some)) > 1 else some[0] for one, some in alike.items() for _ in some]
    found = counted("Without a result", "why", whys)
    if len(found["rows"]) > 5:
        found["help"] = f"The first 5 of {len(found['rows']):,} reasons; the cases below have theirs."
        del found["rows"][5:]
    return found
