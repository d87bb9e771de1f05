"""What a search for pairs has found so far, in a file, so that it goes on after it was killed.

The first line says what is searched: {"format", "cases" (sha256), "fingerprint" (of the model), "k", ...}; each further
one is a case that is finished, as `lrp_fast.study.pairs` returns it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import without_infinity
from . import folder as folders
from . import manifest
from .cases import Case

FORMAT = "lrp_fast.pairs/1"


@contextmanager
def going_on(
    path: str | os.PathLike | None, model, cases: list[Case], about: dict
) -> Iterator[tuple[dict[str, dict], Callable[[dict], None]]]:
    """The cases that are finished, by id, and what takes down one more. Without a path, none and nothing.

    Raises:
        ValueError: for a file of another search, one that another process works on, and one that is none.
        OSError: if it cannot be written.
    """
    if path is None:
        yield {}, lambda case: None
        return
    text = folders.lines([case.as_line() for case in cases])
    same = {"format": FORMAT, "cases": hashlib.sha256(text).hexdigest(), "fingerprint": manifest.fingerprint(model)}
    same = without_infinity(same | about)
    with open(path, "ab") as file:
        if not folders.lock(file):
            raise ValueError(f"another process works on {os.fspath(path)!r}: wait for it to end, or name another file")
        folders.cut_off(Path(path))
        begun, *done = [_parsed(line, path) for line in Path(path).read_bytes().splitlines()] or [None]
        if begun is None:
            _write(file, same)
        elif begun != same:
            raise ValueError(
                f"{os.fspath(path)!r} is of a search for pairs that was begun with another model, other prompts or "
                "other options: give what it was begun with, or delete it"
            )
        yield {one["id"]: one for one in done}, lambda case: _write(file, case)


def _write(file, one: dict) -> None:
    file.write(folders.lines([without_infinity(one)]))
    file.flush()


def _parsed(line: bytes, path) -> dict:
    try:
        found = json.loads(line)
        if isinstance(found, dict) and ("id" in found or found.get("format") == FORMAT):
            return found
    except ValueError:
        pass
    raise ValueError(f"{os.fspath(path)!r} holds a line that no search for pairs wrote, {line[:100]!r}: name another")
