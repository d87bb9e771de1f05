"""What stands above a page's cases: plots and small tables, as lrp_fast/report/study.js reads them."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable


def figure(title: str, says: str, svg: str) -> dict:
    """A plot, and what it says to whoever does not see it."""
    return {"title": title, "alt": says, "svg": base64.b64encode(svg.encode("utf-8")).decode("ascii")}


def small_table(title: str, headings: list[str], rows: list[list[str]], help: str = "") -> dict:
    """A heading that begins with # is of numbers."""
    return {"title": title, "help": help, "headings": headings, "rows": rows}


def counted(title: str, heading: str, values: Iterable[str], help: str = "") -> dict:
    """How many of each there are, the most first."""
    rows = [[name, f"{number:,}"] for name, number in Counter(values).most_common()]
    return small_table(title, [heading, "#cases"], rows, help)


def number(value: float | None, signed: bool = False) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{'+' if signed and value else ''}.4g}".replace("-", "−").replace("inf", "∞")
