"""Writing results: whole or not at all, and as plain data."""

from __future__ import annotations

import glob
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE = 60  # seconds without a byte written


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place, so that no reader sees half a file."""
    with aside(path) as part, open(part, "xb") as file:
        file.write(data)


@contextmanager
def aside(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside ``path``, for a file that is renamed into place at the end of the block, or removed if it fails."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of a process that was killed while it wrote
        named_here = re.fullmatch(r"[0-9a-f]{8}", left.name.removeprefix(f".{path.name}.").removesuffix(".part"))
        with suppress(FileNotFoundError):  # one that writes just now has it renamed
            if named_here and time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def without_infinity(value):
    """``value``, of dicts, lists and scalars, with None for every float that JSON cannot say."""
    if isinstance(value, dict):
        return {key: without_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_infinity(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
