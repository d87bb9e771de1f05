"""Writing results: whole or not at all, and as plain data."""

from __future__ import annotations

import errno
import glob
import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE = 60  # seconds without a byte written

_MENDS = {
    errno.ENOENT: "make that folder, or name one that exists",
    errno.ENOTDIR: "name a folder, and a file in it",
    errno.EISDIR: "that is a folder, so name a file in it",
    errno.EEXIST: "that is no regular file, so name another",
    errno.EACCES: "name a folder and a file that you may write",
    errno.EPERM: "name a folder and a file that you may write",
    errno.EROFS: "name a folder on a disk that can be written",
    errno.ENOSPC: "free some space, or name a folder on another disk",
    errno.EDQUOT: "free some space, or name a folder on another disk",
    errno.EFBIG: "name a folder on a disk that takes files of this size",
    errno.ENAMETOOLONG: "give it a shorter name",
}


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/lrp_fast``, or ``~/.cache/lrp_fast``: for what can be made again. It need not be there.

    Raises:
        OSError: if there is neither, as in a container whose user is a number that no file knows.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrp_fast"
    except RuntimeError as error:
        raise OSError("no home directory is known: set XDG_CACHE_HOME") from error


def write_atomically(path: str | os.PathLike, data: bytes, sweep: bool = True) -> None:
    """Write ``data`` beside ``path`` and rename it into place, so that no reader sees half a file.

    Args:
        sweep: as of `aside`.

    Raises:
        OSError: as `aside`.
    """
    with aside(path, sweep) as part, open(part, "xb") as file:
        file.write(data)


@contextmanager
def aside(path: str | os.PathLike, sweep: bool = True) -> Iterator[Path]:
    """A name beside ``path``, for a file that is renamed into place at the end of the block, or removed if it fails.

    Args:
        sweep: whether what killed processes have left of this file is looked for, among all that is in the folder.

    Raises:
        OSError: of the kind that the system gave, where the file cannot be written: one sentence that names the file
            and the folder that were asked for, not the name beside it.
    """
    path = Path(path)
    part = None
    try:
        if path.exists() and not path.is_file():  # a folder, or a device, which the renaming would replace
            number = errno.EISDIR if path.is_dir() else errno.EEXIST
            raise OSError(number, os.strerror(number))
        label = _label(path.name)
        left_behind = path.parent.glob(f"{glob.escape(label)}*.part") if sweep else ()
        for left in left_behind:  # of a process that was killed while it wrote
            named_here = re.fullmatch(r"[0-9a-f]{8}", left.name.removeprefix(label).removesuffix(".part"))
            with suppress(FileNotFoundError):  # one that writes just now has it renamed
                if named_here and time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()
        part = path.with_name(f"{label}{secrets.token_hex(4)}.part")
        yield part
        os.replace(part, path)
    except BaseException as error:
        if part is not None:
            with suppress(OSError):  # it would hide the first one
                part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise in_our_words(error, path) from error
        raise


def _label(name: str) -> str:
    """How names beside a file of this name begin; they must not become longer than a file system takes."""
    if len(os.fsencode(name)) <= 200:
        return f".{name}."
    return f".{name[:40]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}."


def in_our_words(error: OSError, path: Path) -> OSError:
    """An error of the same kind that names ``path``."""
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    mend = _MENDS.get(error.errno, "name another file")
    if error.errno == errno.ENOENT and path.parent.is_dir():  # what was written has been taken away
        mend = "write it again"
    sentence = f"cannot write {path.name!r} in the folder {os.fspath(path.parent)!r} ({reason}): {mend}"
    return OSError(error.errno, sentence) if error.errno is not None else type(error)(sentence)


def without_infinity(value):
    """``value``, of dicts, lists and scalars, with None for every float that JSON cannot say."""
    if isinstance(value, dict):
        return {key: without_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_infinity(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
