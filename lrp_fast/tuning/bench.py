"""What the tuner needs of a machine: a device, a compiler, a stopwatch and a deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ..operations import FULL, Size
from ..ops.backend import interprets, kernels
from ..ops.measured import Device, device_of
from .launches import TOKENS, work

_COMPILERS = 12  # threads at most


def compiled(row: str, table: dict, on: tuple[int, int]):
    """What the launch that ``row`` is for takes (`kernels.resources.Resources`); None where the compiler refuses it."""
    import triton

    kernel, prepare = work(row)
    cases = kernels("common").record({row: lambda: prepare("meta")(table)}, on)
    (case,) = (case for case in cases if case[1] is kernel)
    try:
        return kernels("resources").resources(case, on[0] * 10 + on[1])
    except (triton.CompilationError, triton.runtime.errors.PTXASError, RuntimeError):
        return None


def median_milliseconds(call: Callable[[], object]) -> float:
    import triton

    return triton.testing.do_bench(call, return_mode="median")


@dataclass(frozen=True)
class Bench:
    """A machine to measure on. Tests bring another stopwatch and compiler."""

    device: torch.device
    on: Device
    end: float  # by the clock
    tokens: int = TOKENS
    size: Size = FULL  # of the operations that are checked
    milliseconds: Callable[[Callable[[], object]], float] = median_milliseconds
    compiled: Callable = compiled
    clock: Callable[[], float] = time.monotonic
    refusals: tuple[type[Exception], ...] = ()  # what a launch that the device cannot have raises

    def left(self) -> float:
        """Seconds."""
        return self.end - self.clock()

    def compiling(self, row: str, trials: dict[tuple, dict]) -> Iterator[tuple[tuple, object]]:
        """By entry, in the order of ``trials``, what `compiled` says of it. Several are compiled at a time."""
        with ThreadPoolExecutor(min(_COMPILERS, os.cpu_count() or 1)) as pool:
            waiting = [pool.submit(self.compiled, row, table, self.on.capability) for table in trials.values()]
            try:
                for entry, one in zip(trials, waiting, strict=True):
                    yield entry, one.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def bench_of(device: torch.device, seconds: float) -> Bench:
    """A CUDA device, from now on for so many seconds.

    Raises:
        ValueError: where no kernel would be compiled.
    """
    import triton

    if interprets():
        raise ValueError("TRITON_INTERPRET is set, with which no kernel is compiled: unset it")

    refusals = (triton.runtime.errors.OutOfResources,)
    return Bench(device, device_of(device), time.monotonic() + seconds, refusals=refusals)
