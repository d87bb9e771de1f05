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
        cases = _turned(model, cases, tokenizer, methods)
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
        name = Path(word).name if is_file else word
        if name in found:
            raise ValueError(f"two methods are called {name!r}: leave one out, or give its file another name")
        try:
            found[name] = scores_from(word) if is_file else named(word)
        except OSError as error:
            raise ValueError(f"cannot read the scores: {error}") from error
    return found


def _turned(model, cases: list, tokenizer, methods: dict) -> list:
    """Raises ValueError for scores of a file that are of a question the other way round."""
    from ..evaluate import Scores, preferred

    found = preferred(model, cases, tokenizer)
    turned = [now.id for was, now in zip(cases, found, strict=True) if now.target != was.target]
    print(f"{len(turned):,} of {len(cases):,} cases turned: the model prefers their contrast", file=sys.stderr)
    for name, method in methods.items():
        if isinstance(method, Scores) and (there := [id for id in turned if id in method.by_case]):
            raise ValueError(
                f"--turn exchanges target and contrast of {there[0]!r}, and {name} holds its scores as it was: leave "
                "--turn out, or write the cases turned, and score those"
            )
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
        print("searching epsilon and gamma", file=sys.stderr)
        searched = search(model, cases, protocol=options.protocols[0], **shared)
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
