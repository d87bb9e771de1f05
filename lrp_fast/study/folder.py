"""What lies in a study's folder, and how it comes there whole.

    RUN/manifest.json            what the run is: see `lrp_fast.study.manifest`; written when all else is ready to begin
    RUN/cases.jsonl              the cases as they were read, one a line, in the user's order (`Case.as_line`)
    RUN/log.jsonl                what became of them, in the order of that: {"id", "status", "why", "seconds"}; a
                                 status is "done", "failed" (on the way) or "refused" (before anything was computed);
                                 of a case that is logged twice, as failed cases may be tried again, the last counts
    RUN/results/KEY.safetensors  `Attribution.save` of a case that is done
    RUN/graphs/KEY.safetensors   `Graph.save` of the same, where graphs were asked for
    RUN/observed/KEY.safetensors what observers kept of it, where they were: see `lrp_fast.study.observed`
    RUN/cases.parquet            a row a case, in the user's order: see `lrp_fast.study.table`
    RUN/pages/                   where they were asked for: see `lrp_fast.study.pages`
    RUN/.lock                    empty; locked by the process that works on the folder

KEY is `key` of a case's id. Files are written aside and renamed, but for the log, to which lines are appended; a last
line that was cut off is taken away when the run goes on. So whatever moment a process is killed at, what was finished
stays, and there is no half of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..files import in_our_words, write_atomically
from .cases import Case, read_cases

FORMAT = "lrp_fast.study/1"
PLACES = ("results", "graphs", "observed")
_STATUSES = ("done", "failed", "refused")
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # as `lrp_fast.files.aside` names what it writes
_OURS = {"manifest.json", "cases.jsonl", "log.jsonl", *PLACES, "cases.parquet", ".lock"}


def key(id: str) -> str:
    """The name of a case's files: what of its id is plain, to be read by people, and a digest of all of it."""
    plain = re.sub(r"[^0-9A-Za-z]+", "-", id)[:40].strip("-")
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return f"{plain}-{digest}" if plain else digest


@dataclass(frozen=True)
class Folder:
    """A study's folder, to be read; `lrp_fast.study.run` writes it."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def file(self, place: str, id: str) -> Path:
        """Where a case's file is, in one of `PLACES`."""
        return self.path / place / f"{key(id)}.safetensors"

    def result(self, id: str) -> Path:
        """Where a case's `Attribution` is."""
        return self.file("results", id)

    def graph(self, id: str) -> Path:
        """Where a case's `Graph` is."""
        return self.file("graphs", id)

    def observed(self, id: str) -> Path:
        """Where what observers kept of a case is."""
        return self.file("observed", id)

    @property
    def table(self) -> Path:
        return self.path / "cases.parquet"

    @property
    def is_begun(self) -> bool:
        return (self.path / "manifest.json").is_file()

    def manifest(self) -> dict:
        """What the run is.

        Raises:
            FileNotFoundError, ValueError: one sentence, for a folder that is no study's.
        """
        name = os.fspath(self.path)
        try:
            found = json.loads((self.path / "manifest.json").read_text("utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name!r} is no study's folder: it has no manifest.json") from error
        except ValueError as error:
            raise ValueError(f"{name!r} is no study's folder: its manifest.json is no JSON ({error})") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"{name!r} is no study's folder: its manifest.json is not of the format {FORMAT}")
        return found

    def cases(self) -> list[Case]:
        """All of them, in the user's order."""
        return read_cases(self.path / "cases.jsonl")

    def log(self) -> list[dict]:
        """The lines of the log; one that was cut off at its end is not among them."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return [_entry(line) for line in (self.path / "log.jsonl").read_bytes().split(b"\n")[:-1]]
        return []

    def statuses(self) -> dict[str, dict]:
        """The last line of the log of each case that has any."""
        return {one["id"]: one for one in self.log()}


def _entry(line: bytes) -> dict:
    try:
        found = json.loads(line)
        if found["status"] in _STATUSES and isinstance(found["id"], str):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"log.jsonl holds a line that no run wrote, {line[:100]!r}: the folder has been tampered with")


@contextmanager
def working(folder: Folder) -> Iterator[None]:
    """Within the block the folder is there, this process's alone, and rid of what a killed one has left half.

    Raises:
        ValueError: if another process works on it, or it is some other folder.
    """
    if folder.path.is_dir() and not folder.is_begun:
        others = sorted(one.name for one in folder.path.iterdir() if one.name not in _OURS and not is_part(one))
        if others:
            raise ValueError(f"the folder {os.fspath(folder.path)!r} holds other things, {others[0]!r}: name a new one")
    make(folder.path)
    with locked(folder.path):
        for place in (folder.path, *(folder.path / one for one in PLACES)):
            place.mkdir(exist_ok=True)
            sweep(place)
        cut_off(folder.path / "log.jsonl")
        yield


def make(place: Path) -> None:
    """ValueError where a file is in the way; OSError, one sentence, where it must not be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{os.fspath(place)!r} is no folder, or lies in none: name a new one") from error
    except OSError as error:
        raise in_our_words(error, place) from error


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Within the block a folder is this process's alone.

    Raises:
        ValueError: if it is another's.
        OSError: if it must not be written, one sentence.
    """
    try:
        file = open(place / ".lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise in_our_words(error, place / ".lock") from error
    with file:
        if not lock(file):
            raise ValueError(
                f"another process works on {os.fspath(place)!r}: wait for it to end, or name another folder"
            )
        yield  # the system takes the lock back when the file is closed, however the process ends


def sweep(place: Path) -> None:
    """Take away what a killed process has left half; the folder has to be locked."""
    for left in filter(is_part, place.iterdir()):
        left.unlink()


def is_part(path: Path) -> bool:
    return _PART.fullmatch(path.name) is not None


def lock(file) -> bool:
    """Whether it is this process's now. Other systems have other locks, all of which die with their process."""
    try:
        try:
            import fcntl
        except ImportError:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def cut_off(log: Path) -> None:
    """Take away the last line, if its end is missing."""
    if not log.exists():
        return
    data = log.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(log, "r+b") as file:
            file.truncate(whole)


def put(path: Path, data: bytes) -> None:
    """`write_atomically` of a case's file, in half of its time where nothing goes wrong: a study writes thousands."""
    part = f"{path.parent}/.{path.name}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            os.unlink(part)
        write_atomically(path, data, sweep=False)  # which says what is wrong


def append(folder: Folder, entries: list[dict]) -> None:
    """Lines to the log, in one piece."""
    if entries:
        with open(folder.path / "log.jsonl", "ab") as file:
            file.write(lines(entries))


def lines(entries: list[dict]) -> bytes:
    """JSON, one a line. Half of a character, which UTF-8 cannot hold, becomes what JSON writes for it."""
    text = "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in entries)
    return text.encode("utf-8", "backslashreplace")


def begin(folder: Folder, manifest: dict, cases: bytes) -> None:
    """The manifest comes last: with it, the run has begun."""
    write_atomically(folder.path / "cases.jsonl", cases)
    text = json.dumps({"format": FORMAT} | manifest, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomically(folder.path / "manifest.json", (text + "\n").encode("utf-8", "backslashreplace"))


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there, of the length that its header says: a loss of power may have cut it."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
