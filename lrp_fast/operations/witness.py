"""Who computed something: seen by what was launched, not asked of who decides it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Of names of PyTorch's operators, those that stand for a kernel of the vendor's (or of PyTorch's own) for all of an
# attention. On a CPU it is plain PyTorch to us.
_VENDOR = ("flash_attention", "cudnn_attention", "efficient_attention")


class Seen(NamedTuple):
    """Who computed: "triton", "vendor" or "torch"; and the tiles that attention, edges and gamma were launched with."""

    path: str
    tiles: tuple[str, ...]


class _Operators(TorchDispatchMode):
    """Takes down the names of PyTorch's operators that run on a CUDA device."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(isinstance(x, torch.Tensor) and x.is_cuda for x in args):
            self.names.add(str(function))
        return function(*args, **kwargs or {})


def watched(call: Callable, device: torch.device) -> tuple[object, Seen]:
    """``call()``, and who computed it. A backward pass within it runs in this thread, as nothing else would be seen."""
    operators, launches = _Operators(), []
    # On a CPU it would take down nothing, and what steps back before such a mode (`pointwise_native`) would not run.
    watching = operators if device.type == "cuda" else nullcontext()
    with torch.autograd.set_multithreading_enabled(False), watching:
        found = _taking_down(call, device, launches) if importlib.util.find_spec("triton") else call()
    if launches:
        return found, Seen("triton", tuple(dict.fromkeys(filter(None, map(_tile, launches)))))
    vendor = any(part in name for name in operators.names for part in _VENDOR)
    return found, Seen("vendor" if vendor else "torch", ())


def _taking_down(call: Callable, device: torch.device, launches: list):
    from ..kernels import common

    def run(kernel, programs, arguments, constexprs, num_warps, num_stages):
        launches.append((constexprs, num_warps, num_stages))
        common.start(kernel, programs, arguments, constexprs, num_warps, num_stages)

    on = common.capability(torch.empty(0, device=device))
    with common.instead(run, on):
        return call()


def _tile(launched) -> str | None:
    """Of a launch that tiles.json has a row for; of others None."""
    constants, num_warps, num_stages = launched
    if "BLOCK_N" not in constants:
        return None
    blocks = "x".join(str(constants[f"BLOCK_{axis}"]) for axis in "MN")
    return f"{blocks} {num_warps}w{num_stages}s"
