"""What an evaluation found: a row a case, method and protocol, and what they come to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..files import without_infinity, write_atomically
from ..reading import cut, parsed
from .statistics import bootstrap, sign_flips

FORMAT = "lrp_fast.evaluation/1"


@dataclass(frozen=True)
class Row:
    """One method judged by one protocol on one case.

    Attributes:
        case: its id.
        method, protocol: their names; None of what went wrong for all methods, or all protocols.
        measures: floats by name; NaN where a measure is not defined.
        curves: lists of floats by name.
        why: what went wrong, one sentence; None of what went well.
    """

    case: str
    method: str | None
    protocol: str | None
    measures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    why: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `lrp_fast.evaluate` found.

    Attributes:
        rows: in the order of cases, methods and protocols.
        better: of each protocol which of its measures are better "higher" or "lower", the first the one to judge by.
        about: model, replacement, units, seed, versions.
    """

    rows: list[Row]
    better: dict[str, dict[str, str]]
    about: dict

    def table(self, seed: int = 0) -> list[dict]:
        """Of each protocol, measure and method: ``n`` cases, ``mean`` with its 95 % bootstrap interval ``low`` to
        ``high`` (NaN of one case), and of measures that are better one way, whether the method is the ``best`` on
        average over the cases that all methods have, which of several that are equally good none is (nor any where they
        have none in common), and of all but the first of the best ``p`` of the paired test against that (sign flips,
        over the cases that both have). Cases that failed, and NaN, count in no mean; ``failed`` says how many of the
        method's there are."""
        found = []
        for (protocol, measure), by_method in self._values().items():
            way = self.better.get(protocol, {}).get(measure)
            sign = -1 if way == "lower" else 1
            of_all = set.intersection(*map(set, by_method.values()))
            means = {name: _mean(one, of_all) for name, one in by_method.items() if of_all and way}
            best = max(means, key=lambda name: sign * means[name], default=None)
            equal = [name for name in means if math.isclose(means[name], means[best], rel_tol=1e-9)]
            for name, values in by_method.items():
                low, high = bootstrap(np.array(list(values.values())), seed)
                row = {"protocol": protocol, "measure": measure, "better": way, "method": name, "n": len(values)}
                row |= {"mean": _mean(values, values), "low": low, "high": high}
                row |= {"failed": self._failed(protocol, name)}
                p = None if best in (None, name) else _paired(values, by_method[best], seed)["p"]
                found.append(row | {"best": equal == [name] if way else None, "p": p})
        return found

    def paired(self, protocol: str, measure: str, one: str, other: str, seed: int = 0) -> dict[str, float]:
        """``one`` - ``other`` over the cases that both methods have: ``n``, ``mean``, its 95 % bootstrap interval
        ``low`` to ``high``, and ``p`` (see `lrp_fast.evaluate.statistics.sign_flips`)."""
        by_method = self._values().get((protocol, measure), {})
        if missing := [name for name in (one, other) if name not in by_method]:
            raise ValueError(f"there is no {measure!r} of {protocol!r} for method {missing[0]!r}")
        return _paired(by_method[one], by_method[other], seed)

    def save(self, path: str | os.PathLike) -> None:
        """Write rows, table and what they are of as JSON, whole or not at all; NaN is null.

        Raises:
            OSError: if it cannot be written.
        """
        told = {"format": FORMAT, "about": self.about, "better": self.better, "table": self.table()}
        told |= {"rows": [asdict(row) for row in self.rows]}
        write_atomically(path, json.dumps(without_infinity(told), indent=1).encode())

    def _values(self) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
        """Of each protocol and measure, of each method, the cases' finite values."""
        found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for row in self.rows:
            for measure, value in row.measures.items():
                if math.isfinite(value):
                    found.setdefault((row.protocol, measure), {}).setdefault(row.method, {})[row.case] = value
        return found

    def _failed(self, protocol: str, method: str) -> int:
        return sum(
            row.why is not None and row.method in (None, method) and row.protocol in (None, protocol)
            for row in self.rows
        )


def _mean(values: dict[str, float], cases: Container[str]) -> float:
    return float(np.mean([value for case, value in values.items() if case in cases]))


def _paired(one: dict[str, float], other: dict[str, float], seed: int) -> dict[str, float]:
    differences = np.array([value - other[case] for case, value in one.items() if case in other])
    low, high = bootstrap(differences, seed)
    mean = float(differences.mean()) if len(differences) else math.nan
    return {"n": len(differences), "mean": mean, "low": low, "high": high, "p": sign_flips(differences, seed)}


def load(path: str | os.PathLike) -> Evaluation:
    """Read what `Evaluation.save` wrote.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file: one sentence.
    """
    path = Path(path)
    try:
        told = parsed(path.read_text("utf-8"))
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ValueError("it is no evaluation that lrp_fast saved")
        rows = [row_of(one) for one in told["rows"]]
        return Evaluation(rows, told["better"], told["about"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {os.fspath(path)!r}: {cut(str(error))}") from error


def row_of(told: dict) -> Row:
    """What `dataclasses.asdict` said of a row, null where a number is none."""
    measures = {name: math.nan if one is None else float(one) for name, one in told["measures"].items()}
    curves = {name: [math.nan if one is None else float(one) for one in line] for name, line in told["curves"].items()}
    return Row(told["case"], told["method"], told["protocol"], measures, curves, told["why"])
