"""``lrp-fast study``: many cases in one run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial

from tqdm import tqdm

from .explain import loaded, read_spec
from .load import load
from .output import check_files


def run(options: argparse.Namespace) -> int:
    return {"run": _run, "pairs": _pairs, "compare": _compare, "page": _page}[options.part](options)


def _run(options: argparse.Namespace) -> int:
    from .. import Memory
    from ..study import Folder, read_cases
    from ..study import run as study
    from ..study.table import check_installed

    graph = None if options.topk is None and options.mass is None else read_spec(options)
    if graph is None and (options.layers or options.node_threshold or options.absolute):
        raise ValueError("--layers, --node-threshold and --absolute are of a graph: give --topk or --mass too")
    if options.workers is not None and options.ray is None:
        raise ValueError("--workers are Ray's: give --ray too")
    try:
        check_installed("pyarrow")  # before a model is loaded
        if options.ray is not None:
            _ray(options).check()
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    cases = read_file(read_cases, options.cases)
    _tell([(case.id, case.left_out) for case in cases if case.left_out is not None])
    model, tokenizer = loaded(options)
    given = {"rule": options.rule, "tolerance": options.tolerance, "graph": graph, "seed": options.seed}
    given["memory"] = Memory(options.device_budget, options.host_budget, options.offload_dir)
    asked = {name: getattr(options, name) for name in ("heads", "neurons", "lens", "steps")}
    given["observe"] = {name: most for name, most in asked.items() if most}
    if options.ray is not None:
        given["ray"] = _ray(options, model)
    folder = Folder(options.out)
    before = len(folder.statuses())
    try:
        with watched_cases(len(cases)) as progress:
            found = study(
                model, cases, folder.path, tokenizer=tokenizer, retry=options.retry, command=options.command_line,
                progress=lambda now: progress(now.cases, now.tokens / max(1, now.all_tokens)), **given,
            )  # fmt: skip
    except (KeyboardInterrupt, OSError, RuntimeError):
        if folder.is_begun:
            print(
                f"{len(folder.statuses()):,} of {len(cases):,} cases are finished: the same command goes on from there",
                file=sys.stderr,
            )
        raise
    if before:
        print(f"{before:,} cases had been finished before", file=sys.stderr)
    left_out = {case.id for case in cases if case.left_out is not None}
    _tell([(id, one["why"]) for id, one in folder.statuses().items() if one["why"] is not None and id not in left_out])
    if options.json:
        print(json.dumps(found))
    else:
        print(", ".join(f"{number:,} {status}" for status, number in found.items()) + f", of {len(cases):,} cases")
    print(f"wrote {folder.table}", file=sys.stderr)
    return 0 if found["done"] else 1


def _ray(options: argparse.Namespace, model=None):
    """Workers that load what this process has loaded; each has one GPU, which it sees alone, or none."""
    from ..study import Ray

    on_gpu = options.device.startswith("cuda")
    place = os.path.abspath(options.model) if os.path.exists(options.model) else options.model
    same = argparse.Namespace(model=place, device="cuda" if on_gpu else options.device, dtype=options.dtype)
    load = partial(_load, same, getattr(getattr(model, "config", None), "name_or_path", ""))
    return Ray(load, options.ray or None, options.workers, 1 if on_gpu else 0)


def _load(options: argparse.Namespace, name: str):
    """A model and its tokenizer, in a worker; results name it as they do here."""
    model, tokenizer = load(options)
    model.config.name_or_path = name
    return model, tokenizer


def _pairs(options: argparse.Namespace) -> int:
    from ..files import write_atomically
    from ..study import pairs, read_cases
    from ..study.folder import lines

    check_files("--out", options.out)
    if options.out.resolve() == options.cases.resolve():
        raise ValueError(f"--out {options.out} is the file of prompts itself, which would be lost: name another")
    prompts = read_file(read_cases, options.cases)
    model, tokenizer = loaded(options)
    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    try:
        with watched_cases(len(prompts), "prompts") as progress:
            found = pairs(
                model, tokenizer, prompts, k=options.topk, bound=options.bound, max_new_tokens=options.max_new_tokens,
                batch=options.batch, unfinished=unfinished, progress=lambda done, of: progress(done, done / of),
            )  # fmt: skip
    except (KeyboardInterrupt, OSError, RuntimeError):
        print(f"what was found stands in {unfinished}: the same command goes on from there", file=sys.stderr)
        raise
    cases = read_cases(found)
    write_atomically(options.out, lines([case.as_line() for case in cases]))
    unfinished.unlink()
    _tell([(case.id, case.left_out) for case in cases if case.left_out is not None])
    counts = Counter("left out" if case.left_out else case.fields["pair"] for case in cases)
    if options.json:
        print(json.dumps(counts))
    else:
        said = ", ".join(f"{number:,} {how}" for how, number in sorted(counts.items()))
        print(f"{said}, of {len(cases):,} prompts")
    print(f"wrote {options.out}", file=sys.stderr)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ..report.comparison import table
    from ..study import compare
    from ..study.compared import check_folder, summary, write
    from ..study.table import check_installed

    try:
        check_installed("pandas", "pyarrow", "matplotlib")
        check_folder(options.out)
        found = compare(*options.runs, seed=options.seed)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(str(error)) from error
    files = write(found, options.out)
    told = summary(found)
    print(json.dumps(told, ensure_ascii=False, allow_nan=False) if options.json else table(told))
    print(f"wrote {len(files)} files to {options.out}", file=sys.stderr)
    return 0


def _page(options: argparse.Namespace) -> int:
    from ..study import page

    try:
        with watched_cases(0) as progress:
            index = page(
                options.run, options.compare, options.out, seed=options.seed,
                progress=lambda done, of: progress(done, done / of, of),
            )  # fmt: skip
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ValueError(str(error)) from error
    print(index)
    return 0


def read_file(read_cases, path) -> list:
    try:
        return read_cases(path)
    except OSError as error:
        raise ValueError(f"cannot read the cases: {error}") from error


def _tell(left_out: list[tuple[str, str]]) -> None:
    """A line a case: an id may be anything."""
    from ..report.table import _printable

    for id, why in left_out:
        print(_printable(why if why.startswith(f"{id}: ") else f"{id}: {why}"), file=sys.stderr)


class _Bar:
    """How many cases are finished, how fast, and how long the rest takes, by their tokens: longer ones take longer."""

    def __init__(self, bar: tqdm, number: int, what: str) -> None:
        self.bar, self.number, self.what, self.first = bar, number, what, None

    def __call__(self, done: int, share: float, number: int | None = None) -> None:
        self.number = number or self.number  # where it was not known before
        now = time.perf_counter()
        if self.first is None:  # what was there before
            self.first = (now, done, share)
        begun, before, begun_share = self.first
        said = ""
        if done > before:
            left = (1 - share) * (now - begun) / max(share - begun_share, 1e-9)
            said = f", {(done - before) / (now - begun):,.3g} a second, {tqdm.format_interval(left)} left"
        self.bar.n = share
        self.bar.set_description(f"{done:,} of {self.number:,} {self.what}{said}", refresh=False)
        self.bar.refresh()


@contextmanager
def watched_cases(number: int, what: str = "cases"):
    """A bar on stderr; within, what is called with how many are done, and their share of the work."""
    shown = "{desc}{percentage:3.0f}% |{bar}| {elapsed}"
    # disable=None: off where nobody watches.
    with tqdm(total=1.0, bar_format=shown, file=sys.stderr, leave=False, disable=None) as bar:
        yield _Bar(bar, number, what)
