"""What observers saw of cases, as an index and a case's page show it: see `lrp_fast.study.observed`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from ...attribution import Attribution
from .. import observed
from ..cases import Case
from ..folder import Folder
from .columns import Column
from .head import number


def facts(run: Folder, case: Case, result: Attribution, observe: dict | None) -> list[tuple[str, str]]:
    """Of a case's page, what was seen of it; nothing in a run without observers. ``observe`` is the manifest's."""
    path = run.observed(case.id)
    if observe is None:
        return []
    try:
        found = observed.figures(observe, observed.load(path), result.explained)
    except (FileNotFoundError, ValueError):
        return [("Observed", f"{path.name} is missing or torn: start the run again, and it is made again")]
    told = []
    for name, title in (("heads", "Strongest heads"), ("neurons", "Strongest neurons")):
        if name in found:
            told.append((title, "; ".join(f"{_place(one)} {number(_strength(one), True)}" for one in found[name])))
    if "commitment" in found:
        told.append(("Commitment layer", f"{found['commitment']}"))
        told.append(("Logit lens by layer", _by_layer(found["lens"])))
    for one in found.get("steps", ()):
        words = f"relevance by layer {_by_layer(one['relevance'])}"
        if one["moved"] is not None:
            words += f"; moved from the step before by {_by_layer(one['moved'], False)}"
        told.append((f"Step {one['name']}", words))
    return told


def changed(run: Folder, case: Case) -> int:
    """When its file was written, in ns as of `os.stat`; 0 where there is none."""
    try:
        return os.stat(run.observed(case.id)).st_mtime_ns
    except FileNotFoundError:
        return 0


def columns(rows: list) -> Iterator[Column]:
    """The strongest head and neuron of each case; the commitment layer is plain, and the index shows it as it is."""
    for name in ("head", "neuron"):
        best = [_first(row.more.get(f"{name}s")) for row in rows]
        about = f"of greatest |relevance| among the case's {name}s, and its relevance"
        places = [None if one is None else _place(one) for one in best]
        yield Column(f"seen.{name}", f"strongest {name}", "text", places, about, shown=True)
        strengths = [None if one is None else _strength(one) for one in best]
        yield Column(f"seen.{name}_relevance", f"relevance of that {name}", "signed", strengths, about)


def _first(found) -> dict | None:
    """Of the table's list; a user's field of that name is none."""
    return next(iter(found), None) if isinstance(found, np.ndarray) else None


def _place(one: dict) -> str:
    kind = "head" if "head" in one else "neuron"
    return f"layer {int(one['layer'])}, {kind} {int(one[kind])}"


def _strength(one: dict) -> float | None:
    return one["output"] if "output" in one else one["relevance"]


def _by_layer(values: list, signed: bool = True) -> str:
    return ", ".join(number(one, signed) for one in values)
