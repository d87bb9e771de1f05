"""What an evaluation found, as plain text for a terminal."""

from __future__ import annotations

import math
from collections import Counter

from ..report.table import _pad, _printable, cut
from .result import Evaluation

_NAME = 28  # columns of a method's name
_MEASURES = 3  # of a protocol, side by side


def table(found: Evaluation, seed: int = 0) -> str:
    """Of each protocol its methods, the best first: mean and 95 % interval over the cases, by its first measures. Ends
    without a newline."""
    rows = found.table(seed)
    lines = [headline(found)]
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        mine = [row for row in rows if row["protocol"] == protocol]
        measures = [name for name in found.better.get(protocol, {}) if any(row["measure"] == name for row in mine)]
        measures = (measures or list(dict.fromkeys(row["measure"] for row in mine)))[:_MEASURES]
        lines += ["", protocol, "", *_block(mine, measures, found.better.get(protocol, {}))]
    if any(row["best"] for row in rows):
        lines += ["", "mean over the cases [95 % bootstrap interval]; * the best, p against it: paired sign flips"]
        if _differs(rows):
            lines.append("where n differs, * is the best over the cases that all methods have")
    if why := failures(found):
        lines += ["", *why]
    return "\n".join(lines)


def headline(found: Evaluation) -> str:
    about = found.about
    parts = [f"{about['model']}" if about.get("model") else "", f"{about['cases']} cases"]
    if about.get("replacement"):
        parts.append(f"replacement {about['replacement']}")
    parts.append(f"units {about['units']}")
    return ", ".join(filter(None, parts))


def _block(rows: list[dict], measures: list[str], better: dict[str, str]) -> list[str]:
    heading = f"{_pad('method', _NAME)}     n"
    for name in measures:
        heading += f"  {cut(name + (', ' + better[name] if name in better else ''), 40):<40}"
    by = {(row["method"], row["measure"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    first = measures[0]
    sign = 1 if better.get(first) == "lower" else -1
    methods.sort(key=lambda name: sign * by[name, first]["mean"] if (name, first) in by else float("inf"))
    lines = [heading.rstrip()]
    for name in methods:
        count = by[name, first]["n"] if (name, first) in by else 0
        line = f"{_pad(name, _NAME)}  {count:4d}"
        for measure in measures:
            line += f"  {_cell(by.get((name, measure)), count):<40}"
        lines.append(line.rstrip())
    return lines


def _cell(row: dict | None, count: int) -> str:
    """``count``: the cases that the row's beginning says."""
    if row is None:
        return "-"
    text = f"{row['mean']:.4g}"
    if math.isfinite(row["low"]):
        text += f" [{row['low']:.4g}, {row['high']:.4g}]"
    if row["best"]:
        text += " *"
    elif row["p"] is not None:
        text += f" p {row['p']:.2g}"
    return text if row["n"] == count else f"{text} n {row['n']}"


def _differs(rows: list[dict]) -> bool:
    """Whether the methods' means of some measure are over different numbers of cases."""
    counts: dict[tuple, set[int]] = {}
    for row in rows:
        counts.setdefault((row["protocol"], row["measure"]), set()).add(row["n"])
    return any(len(one) > 1 for one in counts.values())


def failures(found: Evaluation, most: int = 5) -> list[str]:
    """What went wrong, the commonest first, with how often."""
    failed = [row for row in found.rows if row.why is not None]
    counted = Counter((row.protocol, row.why) for row in failed)
    lines = []
    for (protocol, why), number in counted.most_common(most):
        methods = list(dict.fromkeys(row.method for row in failed if (row.protocol, row.why) == (protocol, why)))
        method = methods[0] if len(methods) == 1 else f"{len(methods)} methods"
        where = ", ".join(filter(None, [method, protocol])) or "the case"
        lines.append(_printable(f"{number} not judged ({where}): {why}"))
    if len(counted) > most:
        lines.append(f"and {len(counted) - most} more kinds")
    return lines
