"""What a page of cases shows of each: the columns of its table, as lrp_fast/report/study.js reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from ...files import without_infinity

MOST_BYTES = 4_000_000  # of a page's cells: with plots it stays below 5 MB
_TEXT = 160  # characters of one
_EMPTY = (None, "")


class Column(NamedTuple):
    """A column, and what each row has in it.

    kind: how a cell is written: "case", "text", "why" (long), "token", "strip", "signed" (relevance), "number" (of
        0 to 1 as a rule), "count" or "plain" (as it is).
    shown, narrow: whether it is there unless the reader asks, on a wide screen and on a narrow one.
    facet: whether the reader may choose among its values, where they are few.
    at, linked: the folder of the case's page, for a cell that leads there, and the column that is null where there is
        no page.
    sign: of "token", the column whose sign colours it.
    instead: the column that says why a cell is empty.
    """

    key: str
    title: str
    kind: str
    values: list
    help: str = ""
    shown: bool = False
    narrow: bool = False
    facet: bool = False
    at: str | None = None
    linked: str | None = None
    sign: str | None = None
    instead: str | None = None


def embedded(columns: Iterable[Column], keys: list[str]) -> tuple[dict, list[str]]:
    """The part of a page's data that is its table, and the titles of columns that there was no room for.

    ``keys`` are the names of the rows' files. Columns that are empty are left out.
    """
    room, heads, cells, left_out = MOST_BYTES - _size(keys), [], {}, []
    for column in columns:
        values = [_short(without_infinity(one)) for one in column.values]
        if column.key != "case" and all(one in _EMPTY for one in values):
            continue
        size = _size(values)
        if size > room:
            left_out.append(column.title)
            continue
        room -= size
        head = {name: one for name, one in column._asdict().items() if name != "values"}
        heads.append({name: one for name, one in head.items() if one is not None})
        cells[column.key] = values
    return {"columns": heads, "cells": cells, "keys": keys}, left_out


def _size(values: list) -> int:
    return len(json.dumps(values, separators=(",", ":")))


def _short(value):
    """Six digits of a number, and the beginning of a text."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if len(value) <= _TEXT else value[: _TEXT - 1] + "…"
