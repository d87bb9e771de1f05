"""Which stabilisers serve a rule best: a small search on cases that are then left out."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import NamedTuple

from ..rules import Rules, as_rules
from ..study.cases import Case, read_cases
from .judging import evaluate
from .methods import ByRule
from .protocols import PROTOCOLS

GRID = {"epsilon": (0.0, 0.01, 0.1), "gamma": (0.0, 0.1, 0.5)}


class Found(NamedTuple):
    """What `search` found.

    Attributes:
        rules: the best.
        word: the same as `lrp_fast.evaluate.methods.named` takes it, "attnlrp:gamma=0.1".
        held_out: the cases that it was found on.
        rest: all others, on which it may be judged.
        table: of each rule its ``method`` (a word), ``n`` cases, and ``mean`` with its interval ``low`` to ``high``,
            the best first.
        measure: of which protocol and by which measure, "flip, flipped_at".
    """

    rules: Rules
    word: str
    held_out: list[Case]
    rest: list[Case]
    table: list[dict]
    measure: str


def search(
    model,
    cases,
    rule: str | Rules = "attnlrp",
    grid: Mapping[str, Sequence[float]] | None = None,
    protocol: str = "flip",
    *,
    tokenizer=None,
    replacement: str | None = None,
    units: str | int = "tokens",
    share: float = 0.2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Try a rule with all combinations of stabilisers on some of the cases, and take the best on average.

    Args:
        grid: of fields of `lrp_fast.Rules` the values that are tried; `GRID` by default. The first combination wins
            where others are no better: name the plainest first.
        protocol: of `lrp_fast.evaluate.PROTOCOLS`; by its first measure.
        share: of the cases that are held out, drawn by their ids and ``seed``, one at least and not all.
        model, cases, tokenizer, replacement, units, seed, progress: as of `lrp_fast.evaluate`.

    Raises:
        ValueError: for fewer than two cases, a share that is none, or if not one of those held out could be judged.
    """
    cases, own = read_cases(cases), asdict(as_rules(rule))
    if not 0 < share < 1 or len(cases) < 2:
        raise ValueError(f"a share of {share} of {len(cases)} cases cannot be held out: give more cases, or 0.2")
    held_out, rest = split(cases, share, seed)
    grid = GRID if grid is None else grid
    tried = [Rules(**own | dict(zip(grid, one, strict=True))) for one in itertools.product(*grid.values())]
    by_word = {word_of(one): one for one in tried}
    methods = {word: ByRule(one) for word, one in by_word.items()}
    given = {"tokenizer": tokenizer, "replacement": replacement, "units": units, "seed": seed}
    found = evaluate(model, held_out, methods, [protocol], progress=progress, **given)
    measure, way = next(iter(PROTOCOLS[protocol].better.items()))
    rows = [row for row in found.table(seed) if row["measure"] == measure]
    if not rows:
        why = next((row.why for row in found.rows if row.why is not None), "there was nothing to judge")
        raise ValueError(f"none of the {len(held_out)} cases held out could be judged: {why}")
    order = list(by_word)
    rows.sort(key=lambda row: (row["mean"] if way == "lower" else -row["mean"], order.index(row["method"])))
    table = [{name: row[name] for name in ("method", "n", "mean", "low", "high")} for row in rows]
    best = rows[0]["method"]
    return Found(by_word[best], best, held_out, rest, table, f"{protocol}, {measure}")


def split(cases: list[Case], share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Some of the cases, by their ids, and the others, both in their order."""
    drawn = sorted(cases, key=lambda case: (zlib.crc32(f"{seed} {case.id}".encode("utf-8", "replace")), case.id))
    held = {case.id for case in drawn[: min(len(cases) - 1, max(1, round(share * len(cases))))]}
    return [case for case in cases if case.id in held], [case for case in cases if case.id not in held]


def word_of(rules: Rules) -> str:
    """As `lrp_fast.evaluate.methods.named` reads it."""
    told = [(field.name, getattr(rules, field.name)) for field in fields(rules) if field.name != "name"]
    options = ",".join(f"{name}={value:g}" for name, value in told if value)
    return f"{rules.name}:{options}" if options else rules.name
