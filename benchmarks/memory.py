"""Peak memory of a call, as the kernel counts it (Linux only)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_above(fn: Callable[[], Result]) -> tuple[Result, int]:
    """Call ``fn`` and return its result with the bytes by which resident memory rose above what was resident before.

    The kernel's own high-water mark is reset and read, so no peak is too short to be seen. Whatever ``fn`` touches for
    the first time counts as its own: a memory-mapped checkpoint, a library that loads lazily. Call ``fn`` once on a
    small input beforehand where that is not meant, and measure each thing in a process of its own.

    Raises:
        RuntimeError: where the kernel has no such mark to reset (anything but Linux, and some sandboxes).
    """
    before = start()
    result = fn()
    return result, above(before)


def start() -> int:
    """Give back free heap and reset the mark; the bytes resident now. The two halves of `peak_above`, for a call that
    is not made in between but told over a pipe."""
    gc.collect()
    _give_back_free_heap()
    try:
        _CLEAR_REFS.write_text("5")  # sets the high-water mark to what is resident now, see proc_pid_clear_refs(5)
    except OSError as error:
        raise RuntimeError(f"peak memory cannot be measured here: {_CLEAR_REFS}: {error.strerror}") from error
    return _high_water_mark()


def above(before: int) -> int:
    return max(0, _high_water_mark() - before)


def _high_water_mark() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"peak memory cannot be measured here: {_STATUS} has no VmHWM")


def _give_back_free_heap() -> None:
    """Free heap left over from earlier calls is resident too, and would hide as much of the peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
