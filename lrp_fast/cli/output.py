"""Where results are written."""

from __future__ import annotations

import tempfile
from pathlib import Path


def beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def check_files(option: str, out: Path, suffixes: tuple[str, ...] = ("",)) -> None:
    """Before anything is computed for it: an option must name files that can be written."""
    mend = f"name {'files' if len(suffixes) > 1 else 'a file'} with {option} in a folder that exists and can be written"
    if out.name in ("", "..") or any(beside(out, suffix).is_dir() for suffix in suffixes):
        raise ValueError(f"{option} {out} names no file: {mend}")
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=out.name, suffix=suffixes[-1]):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {beside(out, suffixes[-1])} ({error.strerror}): {mend}") from error
