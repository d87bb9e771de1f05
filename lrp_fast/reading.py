"""What a safetensors file of ours says of itself, as JSON under one key of its header: read whole, and checked, before
any tensor is. Nothing that is read here takes more memory than a small multiple of the file's size."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

_KEY = "lrp_fast"
_MOST_HEADER = 100_000_000  # bytes: safetensors reads no longer one
_MOST_NESTED = 200  # lists and dicts within each other; Python walks them by recursion

FORMATS = {  # what the header calls it: what it is, what writes it, what reads it
    "lrp_fast.attribution/1": ("an attribution", "Attribution.save", "lrp_fast.load"),
    "lrp_fast.graph/1": ("a graph", "Graph.save", "lrp_fast.Graph.load"),
    "lrp_fast.observed/1": ("an observation", "lrp_fast.study.run", "lrp_fast.study.observed.load"),
}


class Header(NamedTuple):
    """What a file holds beside its tensors.

    Attributes:
        about: what was given to `metadata`.
        shapes: of each tensor, by its name.
    """

    about: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def metadata(about: dict[str, Any], format: str, checked: bool = True) -> dict[str, str]:
    """``about`` as the metadata of a file; where it is ``checked``, only where `header` would read it.

    Raises:
        TypeError, ValueError: for what JSON does not hold, or holds twice under one name, or is nested too deep.
    """
    try:
        text = json.dumps({"format": format} | about)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    if not checked:
        return {_KEY: text}
    parsed(text)
    size = len(json.dumps(text))
    if size > _MOST_HEADER // 2:  # the rest is room for the tensors' names
        raise ValueError(f"its description takes {size:,} bytes, and a safetensors file holds {_MOST_HEADER // 2:,}")
    return {_KEY: text}


def header(path: str | os.PathLike, format: str) -> Header:
    """The header of a file of that format.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        OSError: if it cannot be read.
        ValueError: if it is no such file; the sentence does not name the path.
    """
    kind, _, _ = FORMATS[format]
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"no {kind.split()[-1]} at {os.fspath(path)!r}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    with open(path, "rb") as file:
        room = os.fstat(file.fileno()).st_size - 8
        if room < 0:
            raise ValueError("it is empty" if room == -8 else "it ends within its first 8 bytes")
        size = int.from_bytes(file.read(8), "little")
        if size > min(room, _MOST_HEADER):
            raise ValueError(f"its header would take {size:,} bytes, and {min(room, _MOST_HEADER):,} are there")
        text = file.read(size)
    parts = parsed(text.decode("utf-8"))
    if not isinstance(parts, dict):
        raise ValueError("its header is no JSON object")
    texts = parts.pop("__metadata__", None)
    text = texts.get(_KEY) if isinstance(texts, dict) else None
    about = parsed(text) if isinstance(text, str) else None
    if not isinstance(about, dict) or about.get("format") != format:
        raise OtherFile(_instead(about))
    del about["format"]
    return Header(about, {name: _shape(name, entry) for name, entry in parts.items()})


class OtherFile(ValueError):
    """A whole file of another kind; its words are what it is, where that is known."""


def whole_of(about: dict[str, Any], names: tuple[str, ...]) -> None:
    """ValueError unless a file says all of these things, and nothing else."""
    for name in names:
        if name not in about:
            raise ValueError(f"it holds no {name!r}")
    for name in about:
        if name not in names:
            raise ValueError(f"it holds {cut(repr(name))}, which is not known")


def cut(text: str) -> str:
    """``text`` short enough for a sentence."""
    return text if len(text) <= 200 else text[:197] + "..."


def _instead(about) -> str:
    found = about.get("format") if isinstance(about, dict) else None
    kind, _, reader = FORMATS.get(found, ("", "", "")) if isinstance(found, str) else ("", "", "")
    return f"it is {kind}, which {reader} reads" if kind else ""


def _shape(name: str, entry) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise ValueError(f"the shape of {cut(repr(name))} is no list of sizes")
    return tuple(shape)


def parsed(text: str):
    """What JSON says, with every name once in its object, and not nested beyond what Python can walk."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    level, depth = [found], 0
    while level := [one for each in level for one in _within(each) if isinstance(one, dict | list)]:
        depth += 1
        if depth >= _MOST_NESTED:
            raise ValueError(_too_deep())
    return found


def _within(value):
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep() -> str:
    return f"its lists and dicts lie more than {_MOST_NESTED} deep within each other"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it says {cut(repr(twice))} twice")
    return found
