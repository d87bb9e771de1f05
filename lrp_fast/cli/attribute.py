"""``lrp-fast attribute``: one decision, over tokens and hidden states."""

from __future__ import annotations

import argparse
import json
import sys

from .explain import explain
from .objects import read_object
from .output import beside, check_files

SUFFIXES = (".html", ".json", ".safetensors")  # of what attribute writes


def run(options: argparse.Namespace) -> int:
    check_files("--out", options.out, SUFFIXES)
    if options.by_token and options.answer is None:
        raise ValueError("--by-token explains each token of an answer: give --answer")
    observers = _observers(options)
    given = {"by_token": options.by_token, "observe": list(observers.values())}
    if options.sources is not None:
        given["sources"] = read_object("--sources", options.sources, "names and spans")
    result = explain(options, **given)
    several = result if options.by_token else [result]

    from ..files import write_atomically
    from ..report.html import write_html
    from ..report.observed import sections
    from ..report.record import as_json
    from ..report.table import best_table, table

    records = list(map(as_json, several))
    if observers:
        for record, one in zip(records, several, strict=True):
            record["observed"] = _observed(one, list(observers), options)
    text = json.dumps(records if options.by_token else records[0], ensure_ascii=False, allow_nan=False)
    page, plain, saved = (beside(options.out, suffix) for suffix in SUFFIXES)
    written = [saved]
    if options.by_token:
        written = [saved.with_name(f"{saved.stem}-{i}{saved.suffix}") for i in range(1, len(several) + 1)]
    for one, path in zip(several, written, strict=True):
        one.save(path)
    write_atomically(plain, (text + "\n").encode("utf-8", "backslashreplace"))
    write_html(result, page)
    if options.json:
        print(text)
    else:
        if options.target is None and options.answer is None:
            print(best_table(result.explained), end="\n\n")
        shown = [[table(one, options.top)] for one in several]
        if observers:
            shown = [[*one, sections(record["observed"])] for one, record in zip(shown, records, strict=True)]
        print("\n\n".join(part for one in shown for part in one))
    print(f"wrote {page}, {plain}, {' to '.join(map(str, written[:1] + written[1:][-1:]))}", file=sys.stderr)
    return 0


def _observers(options: argparse.Namespace) -> dict:
    """Those that are asked for, by their option's name."""
    from ..observers import Heads, LogitLens, Neurons

    found = {}
    if options.heads:
        found["heads"] = Heads()
    if options.neurons:
        found["neurons"] = Neurons(k=options.neurons)
    if options.lens:
        found["lens"] = LogitLens()
    return found


def _observed(result, names: list[str], options: argparse.Namespace) -> dict:
    """What they kept of a result, as plain data."""
    from ..report.observed import heads_as_json, lens_as_json, neurons_as_json

    made = {
        "heads": lambda found: heads_as_json(found, options.heads),
        "neurons": lambda found: neurons_as_json(found, options.neurons),
        "lens": lambda found: lens_as_json(found, result.explained),
    }
    return {name: made[name](found) for name, found in zip(names, result.observed, strict=True)}
