"""Writing results so that they appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place, so that no reader sees half a file."""
    with aside(path) as part, open(part, "xb") as file:
        file.write(data)


@contextmanager
def aside(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside ``path``, for a file that is renamed into place at the end of the block, or removed if it fails."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
