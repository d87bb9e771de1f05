"""Cases: what a study explains, as files, datasets and programs write them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files import without_infinity
from ..reading import cut, parsed
from ..tokenizer import plain_text
from . import traces

_PROMPTS = ("prompt", "messages", "input_ids")
OWN = ("id", *_PROMPTS, "target", "contrast", "position", "segments", "left_out")


@dataclass(frozen=True)
class Case:
    """One decision that a study explains.

    Attributes:
        id: its name, no other case's.
        prompt: a text, chat messages or token ids, as `lrp_fast.attribute` takes them.
        target, contrast, position: as there.
        segments: named parts of the prompt, as `lrp_fast.attribute` takes ``sources``; may be empty.
        fields: whatever else came with it, as JSON holds it; carried through.
        left_out: why it is not explained, one sentence; None of a case that is.
    """

    id: str
    prompt: object = None
    target: object = None
    contrast: object = None
    position: int | list[int] = -1
    segments: dict = field(default_factory=dict)
    fields: dict = field(default_factory=dict)
    left_out: str | None = None

    def as_line(self) -> dict:
        """What a line of a file says of it; `read_cases` reads the same case."""
        if self.left_out is not None:
            return {"id": self.id, "left_out": self.left_out, **self.fields}
        kind = "prompt"
        if isinstance(self.prompt, list | tuple) or hasattr(self.prompt, "tolist"):
            kind = "messages" if len(self.prompt) and isinstance(self.prompt[0], dict) else "input_ids"
        told = {"id": self.id, kind: self.prompt, "target": self.target, "contrast": self.contrast}
        return told | {"position": self.position, "segments": self.segments} | self.fields


def read_cases(given: str | os.PathLike | Iterable) -> list[Case]:
    """The cases of a file, a dataset or a program, in their order.

    A case is an object of ``id``, one of ``prompt`` (a text), ``messages`` (a chat) and ``input_ids``, and as need be:

    - ``target``, ``contrast``: a token's id or a string, as in `lrp_fast.attribute`; ``["logprob", token]``, ``"mean"``
      and ``["top", k]`` are what tuples are there. Without a target the model's own first choice is explained, without
      a contrast its plain logit.
    - ``position``: a whole number, or a list of them whose sum is explained; -1, the last, if left out.
    - ``segments``: an object of names and spans: a text that stands in the prompt once, [start, end] of tokens,
      ["chars", start, end] of the prompt's text, or a list of such.
    - ``left_out``: a sentence, of a case that is not to be explained.
    - any further fields, which are carried through.

    Of a case without an id, and of one that cannot be read, ``line N`` is the id (``item N`` where there are no
    lines). What cannot be read is not skipped: it is a case that is left out, with the line's number and the reason.

    Args:
        given: a file with one object a line (JSONL, UTF-8); a file or a folder of files, .json, that Debug-XAI wrote
            (see `lrp_fast.study.traces`); a split of Hugging Face's `datasets`; or dicts, or `Case`s. Nulls mean
            nothing, as `datasets` puts them where a row has no such field.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        TypeError, ValueError: for what holds no cases at all.
    """
    found: list[Case] = []
    seen: dict[str, str] = {}
    for where, one in _each(given):
        if isinstance(one, Case) and isinstance(one.id, str) and one.id in seen:
            raise ValueError(f"two cases are called {one.id!r}: give each an id of its own")
        case = _case(where, one, seen)
        seen[case.id] = where
        found.append(case)
    if not found:
        where = f" in {os.fspath(given)!r}" if isinstance(given, str | os.PathLike) else ""
        raise ValueError(f"there are no cases{where}: give one at least")
    return found


def _each(given) -> Iterator[tuple[str, object]]:
    """(where it stands, what stands there) of each case, an exception for what is no object."""
    if isinstance(given, str | os.PathLike):
        yield from _of_path(Path(given))
        return
    if isinstance(given, Mapping):
        splits = [name for name, one in given.items() if hasattr(one, "features")]
        mend = f"name one of its splits, such as [{splits[0]!r}]" if splits else "give a list of cases, [case] for one"
        raise TypeError(f"cases is one {type(given).__name__}: {mend}")
    if not isinstance(given, Iterable):
        kind = type(given).__name__
        raise TypeError(f"cases must be a file, a dataset or a sequence of dicts, not {kind}")
    yield from ((f"item {i}", one) for i, one in enumerate(given, 1))


def _of_path(path: Path) -> Iterator[tuple[str, object]]:
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise ValueError(f"the folder {os.fspath(path)!r} holds no .json files: name a file of cases, one a line")
        yield from ((one.name, _parsed(one.read_bytes())) for one in files)
        return
    if path.suffix == ".json":
        found = _parsed(path.read_bytes())
        if isinstance(found, list):
            yield from ((f"item {i}", one) for i, one in enumerate(found, 1))
            return
        if not isinstance(found, ValueError):  # else it is one object a line after all
            yield path.name, found
            return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _parsed(line)


def _parsed(data: bytes):
    """What JSON says, or the error of what is none."""
    try:
        return parsed(data.decode("utf-8-sig"))
    except ValueError as error:
        return ValueError(f"it is no JSON in UTF-8: {cut(str(error))}")


def _case(where: str, one, seen: dict[str, str]) -> Case:
    name = None
    try:
        if isinstance(one, ValueError):
            raise one
        if isinstance(one, Case):
            one = _line(one)
        if not isinstance(one, Mapping):
            raise TypeError(f"a case must be an object of names and values, not {type(one).__name__}")
        given = _plain(one)
        if traces.is_trace(given):
            given = traces.as_case(given)
        name = _id(given.get("id"), where)
        if name in seen:
            wrong, name = name, None
            raise ValueError(f"the id {wrong!r} is that of {seen[wrong]} too: give each case its own")
        return _read(name, given)
    except (ValueError, TypeError) as error:
        name = name or where
        while name in seen:
            name += " again"
        return Case(name, left_out=f"{where}: {error}")


def _line(case: Case) -> dict:
    """What a program made, as a file would say it."""
    if not isinstance(case.fields, Mapping):
        raise TypeError(f"fields must be an object of names and values, not {cut(repr(case.fields))}")
    own = next((name for name in case.fields if name in OWN), None)
    if own is not None and case.left_out is None:
        raise ValueError(f"a field is called {own!r}, as what a case is made of: give it another name")
    return case.as_line()


def _plain(one: Mapping) -> dict:
    """``one`` as JSON holds it: arrays as lists, and nothing that is null."""

    def listed(part):
        if hasattr(part, "tolist"):
            return part.tolist()
        raise TypeError(f"it holds a {type(part).__name__}, which JSON has no form for")

    try:
        text = json.dumps(dict(one), default=listed)
    except RecursionError as error:
        raise ValueError("its lists and dicts lie too deep within each other") from error
    found = without_infinity(parsed(text))  # as what is written to the run's folder will be read again
    return {key: value for key, value in found.items() if value is not None}


def _id(given, where: str) -> str:
    if given is None:
        return where
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise TypeError(f"id must be a string or a whole number, not {given!r}")
    return plain_text(str(given), "id")


def _read(name: str, given: dict) -> Case:
    if "left_out" in given:
        why = given.pop("left_out")
        if not isinstance(why, str) or not why:
            raise TypeError(f"left_out must be a sentence, not {why!r}")
        return Case(name, fields={key: value for key, value in given.items() if key != "id"}, left_out=why)
    there = [one for one in _PROMPTS if one in given]
    if len(there) != 1:
        has = " and ".join(there) or "no prompt"
        raise ValueError(f"it has {has}: give one of {', '.join(_PROMPTS)}")
    prompt = given[there[0]]
    kinds = {"prompt": (str, "a string"), "messages": (dict, "a list of messages"), "input_ids": (int, "token ids")}
    kind, words = kinds[there[0]]
    whole = isinstance(prompt, str) if kind is str else isinstance(prompt, list) and len(prompt) > 0
    if not whole or (kind is not str and not all(isinstance(one, kind) for one in prompt)):
        raise TypeError(f"{there[0]} must be {words}, not {cut(repr(prompt))}")
    segments = given.get("segments", {})
    if not isinstance(segments, dict):
        raise TypeError(f"segments must be an object of names and spans, not {cut(repr(segments))}")
    return Case(
        name,
        prompt,
        _token("target", given.get("target"), "logprob"),
        _token("contrast", given.get("contrast"), "top"),
        given.get("position", -1),
        {key: spans for key, spans in segments.items() if spans is not None},
        {key: value for key, value in given.items() if key not in OWN},
    )


def _token(name: str, given, word: str):
    """As `lrp_fast.attribute` takes it: a list of two, of which the first is ``word``, is a tuple there."""
    if isinstance(given, list) and len(given) == 2 and given[0] == word and not isinstance(given[1], list):
        return tuple(given)
    if given is None or (isinstance(given, str | int) and not isinstance(given, bool)):
        return given
    raise TypeError(f'{name} must be a string, a token id or ["{word}", ...], not {cut(repr(given))}')
