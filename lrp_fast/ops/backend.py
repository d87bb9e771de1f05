"""Who computes an operation: the fused Triton kernels, a kernel of PyTorch's own, or plain PyTorch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

IMPLS = ("auto", "triton", "torch")


def kernels(name: str) -> ModuleType:
    """``lrp_fast.kernels.<name>``, imported when first needed: Triton exists on Linux only."""
    return importlib.import_module(f"lrp_fast.kernels.{name}")


def preferred(operation: str, x: Tensor) -> str:
    """Who computes an operation that PyTorch has a kernel of its own for, where both serve: "vendor" or "triton".

    PyTorch's, by the count of what has to be computed, as long as nobody has measured it on the device of ``x``.

    Args:
        operation: "attention forward" or "attention backward", of which ``x`` is the query.
    """
    return "vendor"


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
    taken = x.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, (*IMPLS, *also)))}, not {impl!r}")
    if impl == "triton" and not taken:
        raise ValueError(f"the Triton kernels take float16, bfloat16 and float32, not {x.dtype}: use impl='torch'")
    if impl != "auto":
        return impl == "triton"
    return x.is_cuda and taken and served and _runs_triton(x.device)


@functools.cache
def _runs_triton(device: torch.device) -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)
