"""Who computes an operation, and by which tiles: our Triton kernels, a kernel of PyTorch's own, or plain PyTorch, which
on x86 CPUs has the C++ core in its place for some."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType

import torch
from torch import Tensor

from . import measured

IMPLS = ("auto", "triton", "torch")


def kernels(name: str) -> ModuleType:
    """``lrp_fast.kernels.<name>``, imported when first needed: Triton exists on Linux only."""
    return importlib.import_module(f"lrp_fast.kernels.{name}")


# Compute capability and head_dims at which our attention was measured to take no longer than PyTorch's FlashAttention,
# which forms fewer products: an H200, benchmarks/results/kernels.json.
_OURS = {(9, 0): (64, 128)}


def preferred(operation: str, x: Tensor) -> tuple[str, ...]:
    """Who is to compute an operation that PyTorch has kernels of its own for, of "vendor", "cudnn" and "triton", which
    serves everything: what `lrp-fast tune` found on the device of ``x``, then what is known beforehand.

    Args:
        operation: "attention forward" or "attention backward", of which ``x`` is the query.
    """
    if not x.is_cuda:
        return "vendor", "triton"
    head_dim = x.shape[-1]
    known = head_dim in _OURS.get(torch.cuda.get_device_capability(x.device), ())
    row = kernels("attention").row(operation, head_dim, x.element_size())
    found = _obeyed(x.device).measured.paths.get(row)
    return (*(() if found is None else (found,)), *(("triton",) if known else ("vendor", "triton")))


def table(x: Tensor) -> dict[str, dict[str, list[int]]]:
    """The tiles that kernels are launched with on the device of ``x``: tiles.json, and before it what was measured."""
    return table_of(x.device)


def table_of(device: torch.device) -> dict[str, dict[str, list[int]]]:
    """As `table`."""
    return _table(device) if device.type == "cuda" else kernels("tiles").TABLE


def fused(x: Tensor, impl: str, served: bool = True, also: tuple[str, ...] = ()) -> bool:
    """Whether the Triton kernels compute an operation on ``x``.

    "auto" means on CUDA, for what the kernels take and from compute capability 8.0 on, where Triton is installed; every
    other device, dtype and size goes through PyTorch.

    Args:
        served: whether the kernels take the sizes and the other operands.
        also: what ``impl`` may be for this operation beside `IMPLS`, which its caller sees to.

    Raises:
        ValueError: for an unknown ``impl``, or "triton" for a dtype that the kernels do not take.
    """
    if impl == "auto" and not x.is_cuda:
        return False
    taken = x.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, (*IMPLS, *also)))}, not {impl!r}")
    if impl == "triton" and not taken:
        raise ValueError(f"the Triton kernels take float16, bfloat16 and float32, not {x.dtype}: use impl='torch'")
    if impl != "auto":
        return impl == "triton"
    return taken and served and without_triton(x.device) is None


@functools.cache
def without_triton(device: torch.device) -> str | None:
    """Why no kernel of ours runs on a CUDA device, and what to do, in one sentence; None where they do."""
    slower = "PyTorch computes everything there, to the same numbers but slower and in more memory"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {slower}; install triton, 3.6 or newer"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        own = ".".join(map(str, capability))
        return f"this device has compute capability {own}, and Triton's kernels are for 8.0 and higher: {slower}"
    return None


def interprets() -> bool:
    """Whether Triton's kernels are run by its interpreter in this process, which compiles none."""
    return importlib.util.find_spec("triton") is not None and importlib.import_module("triton").knobs.runtime.interpret


@functools.cache
def found_on(device: torch.device) -> measured.Found:
    """What `lrp-fast tune` measured on a CUDA device, read once."""
    return measured.read(measured.device_of(device), kernels("tiles").TABLE)


@functools.cache
def _obeyed(device: torch.device) -> measured.Found:
    found = found_on(device)
    if found.state == "broken":  # of another device or version, the doctor tells
        warnings.warn(found.told, stacklevel=2)
    return found


@functools.cache
def _table(device: torch.device) -> dict[str, dict[str, list[int]]]:
    tiles, on = kernels("tiles"), torch.cuda.get_device_capability(device)
    merged = tiles.TABLE
    for row, tile in _obeyed(device).measured.tiles.items():
        merged = tiles.replaced(merged, row, on, tile.entry)
    return merged


def read_again() -> None:
    """What was measured has changed: the next launch reads it anew."""
    for cached in (found_on, _obeyed, _table):
        cached.cache_clear()
