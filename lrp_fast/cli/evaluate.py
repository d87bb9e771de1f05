"""``lrp-fast evaluate``: is the explanation true?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .explain import loaded
from .study import read_file, watched_cases


def run(options: argparse.Namespace) -> int:
    from ..evaluate import SETS, load_set
    from ..study import read_cases

    if options.out is None and not options.plan:
        raise ValueError("--out says where rows and table go: give it, or --plan")
    methods = _methods(options.methods)
    if options.cases in SETS and not Path(options.cases).exists():
        cases = read_cases(_loaded_set(load_set, options))
    else:
        cases = read_file(read_cases, options.cases)
    model, tokenizer = loaded(options)
    if options.turn:
        from ..evaluate import preferred

        cases = preferred(model, cases, tokenizer)
        turned = sum(bool(case.fields.get("turned")) for case in cases)
        print(f"{turned:,} of {len(cases):,} cases turned: the model prefers their contrast", file=sys.stderr)
    shared = {"tokenizer": tokenizer, "replacement": options.replacement, "units": options.units, "seed": options.seed}
    if options.plan:
        return _plan(options, model, cases, methods, shared)
    return _evaluate(options, model, cases, methods, shared)


def _methods(words: list[str]) -> dict:
    """By the words that they were asked for by; files by their names."""
    from ..evaluate import scores_from
    from ..evaluate.methods import named

    found = {}
    for word in words:
        is_file = word.endswith((".json", ".npz"))
        try:
            found[Path(word).name if is_file else word] = scores_from(word) if is_file else named(word)
        except OSError as error:
            raise ValueError(f"cannot read the scores: {error}") from error
    return found


def _loaded_set(load_set, options: argparse.Namespace) -> list[dict]:
    print(f"loading the set {options.cases}", file=sys.stderr)
    try:
        return load_set(options.cases, options.limit, options.seed)
    except (ModuleNotFoundError, OSError) as error:
        raise ValueError(str(error)) from error


def _plan(options: argparse.Namespace, model, cases: list, methods: dict, shared: dict) -> int:
    from ..evaluate import plan

    found = plan(model, cases, len(methods), options.protocols, **shared)
    if options.json:
        print(json.dumps([one._asdict() for one in found]))
        return 0
    print(f"{'protocol':<16}  {'cases':>7}  {'tokens through the model':>26}")
    for one in found:
        print(f"{one.protocol:<16}  {one.cases:7,}  {one.tokens:26,}")
    total, count = sum(one.tokens for one in found), len(methods)
    print(f"{'':<16}  {'':7}  {total:26,}  for {count} methods, without what these take themselves")
    return 0


def _evaluate(options: argparse.Namespace, model, cases: list, methods: dict, shared: dict) -> int:
    from ..evaluate import run as evaluate_into
    from ..evaluate import search
    from ..evaluate.printed import failures, table
    from ..files import without_infinity

    searched = None
    if options.search:
        told = {"tokenizer": shared["tokenizer"], "seed": options.seed}
        print("searching epsilon and gamma", file=sys.stderr)
        searched = search(model, cases, protocol=options.protocols[0], **told)
        cases = searched.rest
        methods |= _methods([searched.word])
        print(f"{searched.word} is best of {len(searched.table)} by {searched.measure}", file=sys.stderr)
    try:
        with watched_cases(len(cases)) as progress:
            found = evaluate_into(
                model, cases, methods, options.protocols, options.out,
                progress=lambda done, of: progress(done, done / of), **shared,
            )  # fmt: skip
    except (KeyboardInterrupt, OSError, RuntimeError):
        print("what is finished is kept: the same command goes on from there", file=sys.stderr)
        raise
    told = {"about": found.about, "table": found.table()}
    if searched is not None:
        names = {"method": searched.word, "measure": searched.measure, "cases": len(searched.held_out)}
        told["search"] = names | {"table": searched.table}
    text = table(found)
    _write(options.out, text, found, cases)
    print(json.dumps(without_infinity(told), allow_nan=False) if options.json else text)
    if options.json:
        for line in failures(found):
            print(line, file=sys.stderr)
    return 0 if found.table() else 1


def _write(out: Path, text: str, found, cases: list) -> None:
    """The table, and the pictures that there are numbers for."""
    from ..evaluate import plots
    from ..files import write_atomically

    write_atomically(out / "table.txt", (text + "\n").encode("utf-8", "backslashreplace"))
    written = ["table.txt", "evaluation.json"]
    pictures = {
        "curves.svg": lambda: plots.removal_curves(found),
        "needles.svg": lambda: plots.needle_ranks(found, cases),
    }
    for name, draw in pictures.items():
        try:
            write_atomically(out / name, draw())
            written.append(name)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        except ValueError:  # of what was not asked for
            continue
    print(f"wrote {', '.join(written)} in {out}", file=sys.stderr)
