"""An evaluation into a folder, which can be killed and goes on where it was.

    FOLDER/asked.json        what was asked: model, methods, protocols, replacement, units, seed, a digest of the cases,
                             and the versions that were there
    FOLDER/rows.jsonl        a line a case that is finished, {"case": id, "rows": [...]}, in the order of that
    FOLDER/evaluation.json   `Evaluation.save`, when all are finished
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path

from ..files import without_infinity, write_atomically
from ..study.folder import cut_off, lines, make
from ..study.manifest import fingerprint
from .given import Scores
from .judging import about_of, better_of, evaluate, read
from .result import Evaluation, row_of

FORMAT = "lrp_fast.evaluating/1"


def run(
    model,
    cases,
    methods: Mapping[str, object] | Iterable[str],
    protocols: Mapping[str, object] | Iterable[str],
    folder: str | os.PathLike,
    *,
    tokenizer=None,
    replacement: str | None = None,
    units: str | int = "tokens",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """`lrp_fast.evaluate`, a case after the other; what is finished is kept in ``folder``.

    Args:
        folder: a new one, or one that an evaluation of the same was begun in. Functions of one's own are known by their
            names there, not by what they do: where one has changed, name a new folder.
        progress: called with how many cases are finished, and how many there are.
        model, cases, methods, protocols, tokenizer, replacement, units, seed: as of `lrp_fast.evaluate`.

    Raises:
        ValueError: for a folder that was begun with something else; and as `lrp_fast.evaluate`.
        OSError: if something is wrong with the disk.
    """
    from .. import __version__  # which imports this room first

    folder = Path(folder)
    # Whatever is wrong with what is asked is raised here, as it is of no case at all.
    methods, protocols, cases, tokenizer = read(model, cases, methods, protocols, tokenizer, replacement, units)
    given = {"tokenizer": tokenizer, "replacement": replacement, "units": units, "seed": seed}
    about = about_of(model, len(cases), methods, protocols, replacement, units, seed)
    told = {
        "format": FORMAT,
        "fingerprint": fingerprint(model),
        "cases": hashlib.sha256(lines([case.as_line() for case in cases])).hexdigest(),
        "methods": {name: _told(method) for name, method in methods.items()},
        "protocols": {name: _told(one.run) for name, one in protocols.items()},
        "replacement": replacement,
        "units": units,
        "seed": seed,
        "versions": {"lrp_fast": __version__} | about["versions"],
    }
    make(folder)
    _begin(folder, told)
    path = folder / "rows.jsonl"
    finished = _finished(path)
    done = sum(case.id in finished for case in cases)
    if progress is not None:
        progress(done, len(cases))
    for case in cases:
        if case.id in finished:
            continue
        found = evaluate(model, [case], methods, protocols, **given)
        rows = [without_infinity(asdict(row)) for row in found.rows]
        with open(path, "ab") as file:
            file.write(lines([{"case": case.id, "rows": rows}]))
        finished[case.id] = rows
        done += 1
        if progress is not None:
            progress(done, len(cases))
    rows = [row_of(row) for case in cases for row in finished[case.id]]
    found = Evaluation(rows, better_of(protocols), about)
    found.save(folder / "evaluation.json")
    return found


def _told(method) -> str:
    """What a method or a protocol is, the same in every process."""
    if isinstance(method, partial):
        return f"{_told(method.func)} {method.args} {method.keywords}"
    if isinstance(method, Scores):
        digest = hashlib.sha256()
        for case, scores in sorted(method.by_case.items()):
            digest.update(case.encode("utf-8", "surrogatepass") + scores.numpy().tobytes())
        return f"scores {digest.hexdigest()}"
    return repr(method) if is_dataclass(method) else getattr(method, "__qualname__", type(method).__name__)


def _begin(folder: Path, told: dict) -> None:
    """Write what was asked, or see that it is the same.

    Raises:
        ValueError: for a folder that holds anything else.
    """
    path, name = folder / "asked.json", os.fspath(folder)
    if not path.exists():
        others = sorted(one.name for one in folder.iterdir())
        if others:
            raise ValueError(f"the folder {name!r} holds other things, {others[0]!r}: name a new one")
        write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())
        return
    try:
        begun = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is no JSON ({error}): name another folder") from error
    for key, value in told.items():
        if not isinstance(begun, dict) or begun.get(key) != value:
            what = {"fingerprint": "another model", "cases": "other cases"}.get(key, f"another value of {key}")
            raise ValueError(f"the evaluation in {name!r} was begun with {what}: name another folder")


def _finished(path: Path) -> dict[str, list[dict]]:
    """The rows of cases that are finished; a last line that was cut off is taken away."""
    if not path.exists():
        return {}
    cut_off(path)
    found = (json.loads(line) for line in path.read_bytes().splitlines())
    return {one["case"]: one["rows"] for one in found}
