"""The index of a run: a row a case, out of the run's files and table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...attribution import Attribution
from .. import measures
from ..cases import Case
from ..folder import Folder
from ..table import figures_of, plain_fields, spelled_out, table
from . import seen
from .columns import Column
from .strips import profile, strip

_HELP = {
    "entropy": "normalised entropy of |relevance|: 0, one token has all; 1, all have the same",
    "gini": "Gini coefficient of |relevance|",
    "top90": "the smallest number of tokens that hold 0.9 of |relevance|",
    "top90_share": "that number as a share of all tokens",
    "center": "mean position, weighted by |relevance|",
    "center_share": "the same from 0, the first token, to 1, the last",
    "early_late": "|relevance| in the first half of the tokens over that in the second",
}
_KINDS = {"top90": "count", "center": "plain", "early_late": "plain"}
_SEGMENTS = 8  # columns, of those that most cases have


@dataclass
class Row:
    """A case in the index: what became of it, what its result says, and what else its line of the table does."""

    case: Case
    status: str
    why: str | None
    figures: dict
    more: dict
    strip: str | None = None
    strongest: str | None = None
    strongest_relevance: float | None = None
    profile: np.ndarray | None = None

    @classmethod
    def of(cls, case: Case, status: str, why: str | None, result: Attribution | None, told: dict) -> Row:
        """``result`` is None where there is none, and ``told`` is the table's row, without what is not there."""
        if result is None:
            return cls(case, status, why, {}, {})
        figures = figures_of(result, None)
        row = cls(case, status, why, figures, {name: one for name, one in told.items() if name not in figures})
        row.strip, best = strip(result.relevance, result.special)
        row.profile = profile(result.relevance, result.special)
        if best is not None:
            row.strongest = f"#{int(result.input_ids[best])}" if result.tokens is None else result.tokens[best]
            row.strongest_relevance = float(result.relevance[best])
        return row


def told(folder: Folder) -> dict[str, dict]:
    """The rows of the run's table by id, without what is not there; of a run that has not ended there may be none."""
    if not folder.table.is_file():
        return {}
    rows = {}
    for row in table(folder).to_dict("records"):
        rows[row["id"]] = {name: value for name, value in row.items() if not _is_missing(value)}
    return rows


def _is_missing(value) -> bool:
    return value is None or isinstance(value, float) and np.isnan(value)


def columns(rows: list[Row], at: str = "cases/") -> Iterator[Column]:
    """Those of the index, the most telling first; ``at`` is where the cases' pages are."""
    done = sum(row.status == "done" for row in rows)
    mixed = done < len(rows)
    kinds = {row.figures.get("kind", "difference") for row in rows}

    def figure(name: str) -> list:
        return [row.figures.get(name) for row in rows]

    yield Column("case", "case", "case", [row.case.id for row in rows], shown=True, narrow=True, at=at, linked="strip")
    yield Column("value", "value", "signed", figure("value"), "what the relevance explains", shown=True, narrow=True)
    strips = [row.strip for row in rows]
    about = "the input tokens from left to right, coloured as on the case's page: orange speaks for the target"
    yield Column(
        "strip", "relevance", "strip", strips, about, shown=True, narrow=True, at=at, linked="strip", instead="why"
    )  # fmt: skip
    yield Column("status", "status", "text", [row.status for row in rows], shown=mixed, facet=True)
    yield Column("why", "why", "why", [row.why for row in rows], "why there is no result")
    for name in ("target", "contrast"):
        yield Column(name, name, "token", list(map(_token(name), rows)), shown=True)
    plain = kinds == {"difference"}
    yield Column("kind", "value is", "text", figure("kind"), "a logit, ...", shown=not plain, facet=not plain)
    yield Column(
        "strongest", "strongest token", "token", [row.strongest for row in rows],
        "of greatest |relevance| among those that are not special", shown=True, sign="strongest_relevance",
    )  # fmt: skip
    relevance = [row.strongest_relevance for row in rows]
    yield Column("strongest_relevance", "its relevance", "signed", relevance, "of the strongest token")
    finding = [row.more.get("finding") for row in rows]
    yield Column("finding", "finding", "text", finding, shown=True, facet=True)
    yield Column("num_tokens", "tokens", "count", figure("num_tokens"), shown=True)
    for name in measures.NAMES:
        kind, shown = _KINDS.get(name, "number"), name in ("entropy", "center_share")
        yield Column(name, name.replace("_", " "), kind, figure(name), _HELP[name], shown=shown)
    for name in ("target", "contrast"):
        ranks = [None if one is None else int(one) + 1 for one in figure(f"{name}_rank")]
        yield Column(f"{name}_rank", f"{name}'s rank", "count", ranks, "1 is the model's first choice")
    yield from _fields(rows)
    yield from _segments(rows)
    yield from _graphs(rows)
    yield from seen.columns(rows)
    yield from _more(rows)


def _token(name: str):
    def text(row: Row) -> str | None:
        number = row.figures.get(f"{name}_id")
        return row.figures.get(name) or (None if number is None else f"#{int(number)}")

    return text


def _fields(rows: list[Row]) -> Iterator[Column]:
    """What came with the cases; the first few are there at once."""
    for number, (name, values) in enumerate(plain_fields([row.case for row in rows]).items()):
        kind = "text" if any(isinstance(one, str) for one in values) else "plain"
        yield Column(f"field.{name}", name, kind, values, "came with the case", shown=number < 4, facet=True)


def _segments(rows: list[Row]) -> Iterator[Column]:
    sums = [{one["name"]: one["relevance"] for one in row.figures.get("segments", ())} for row in rows]
    counts = Counter(name for one in sums for name in one)
    for name, _ in counts.most_common(_SEGMENTS):
        about = "sum of the segment's relevance at the embeddings"
        yield Column(f"segment.{name}", f"Σ {name}", "signed", [one.get(name) for one in sums], about)


def _graphs(rows: list[Row]) -> Iterator[Column]:
    """The graphs' measures, where graphs were asked for."""
    graphs = [row.more.get("graph") for row in rows]
    graphs = [one if isinstance(one, dict) else None for one in graphs]  # a field of the cases may be called so
    names = next((list(one) for one in graphs if one is not None), [])
    for name in names:
        if name != "layer":
            whole = name in ("nodes", "edges")
            total = np.sum if whole else np.mean
            values = [None if one is None else float(total(one[name])) for one in graphs]
            about = "of the case's graph, " + ("all layers together" if whole else "mean over the layers")
            yield Column(f"graph.{name}", f"graph: {name.replace('_', ' ')}", "plain", values, about)


def _more(rows: list[Row]) -> Iterator[Column]:
    """What else the table has that is plain, as observers leave it there."""
    there = {name for row in rows for name in row.more}
    own = list(map(spelled_out, plain_fields([row.case for row in rows])))
    fields = {f"field.{name}" for name in own}  # so called where the table itself has a column of that name
    known = {"id", "status", "why", "finding", "graph", *fields}
    known |= {name for name in own if f"field.{name}" not in there}
    for name in dict.fromkeys(name for row in rows for name in row.more if name not in known):
        values = [row.more.get(name) for row in rows]
        values = [one.item() if isinstance(one, np.generic) else one for one in values]
        if all(one is None or isinstance(one, str | int | float) for one in values):
            kind = "text" if any(isinstance(one, str) for one in values) else "plain"
            yield Column(f"more.{name}", name.replace("_", " "), kind, values, shown=True, facet=kind == "text")
