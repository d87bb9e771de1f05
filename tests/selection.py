"""Which tests `make test` runs and which it leaves to `make test-all`: the one place that says so.

`make test` is ``-m "not slow and not again"``, `make test-all` has no such words. Left out are tests that are marked

- ``slow``, by hand: more than ten seconds on two cores;
- ``again``, by the rule below: cases whose parameters have no value that a case which does run has not. Of 22 families
  under 5 rules these are all but 22: each family once, each rule several times.

So no test that is not slow is without a case, and no value of its parameters either: every family is there, and every
kernel. What a mark writes out as a table counts as one parameter, whose values are the rows; of a table that is a
product itself, its test marks as ``again`` what may be left out. tests/test_selection.py holds what is promised here.

`make test-all` runs every test and every combination with the pinned versions. With the oldest and the newest of Triton
it takes of the interpreted tests what `make test` takes (slow ones too), and compiles attention, edges and linear maps
for sm_90 and sm_100 alone; with the oldest and the newest of transformers, what `make test` takes of the families.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import pytest

COLLECTED = pytest.StashKey[list[pytest.Item]]()


def mark(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Adds the mark ``again``; ``items`` are all that were collected, of which -m and -k have not yet chosen any."""
    config.stash[COLLECTED] = list(items)
    for cases in by_test(items).values():
        cases = [case for case in cases if not is_left_out(case)]
        for case in again([values(case) for case in cases]):
            cases[case].add_marker("again")


def is_left_out(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("slow", "again"))


def by_test(items: Iterable[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """The cases of each test, in their order."""
    found = defaultdict(list)
    for item in items:
        found[item.nodeid.partition("[")[0]].append(item)
    return found


def values(item: pytest.Item) -> set[Hashable]:
    """(parameter or parameters, which of its values) of a case; empty for a test that has no parameters."""
    if not hasattr(item, "callspec"):
        return set()
    given, rows = item.callspec.params, set()
    for mark in item.iter_markers("parametrize"):
        names = mark.kwargs.get("argnames") or mark.args[0]
        rows.add(tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names))
    # Of fixtures, and of pytest_generate_tests, which has family and rule in pairs: each by itself.
    rows |= {(name,) for name in given.keys() - {name for names in rows for name in names}}
    # The cases have the very objects that a list of values holds, and need not compare them.
    return {(names, *(id(given[name]) for name in names)) for names in rows}


def again(cases: Sequence[set[Hashable]]) -> list[int]:
    """The numbers of those that bring nothing new when, each time, the first that brings most has been taken."""
    left, seen, first = dict(enumerate(cases)), set(), True
    while left:
        number = max(left, key=lambda number: len(left[number] - seen))
        if not first and left[number] <= seen:
            break
        seen |= left.pop(number)
        first = False
    return list(left)
