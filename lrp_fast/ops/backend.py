"""Who computes an operation: the fused Triton kernels, or plain PyTorch."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

IMPLS = ("auto", "triton", "torch")


def kernels(name: str) -> ModuleType:
    """``lrp_fast.kernels.<name>``, imported when first needed: Triton exists on Linux only."""
    return importlib.import_module(f"lrp_fast.kernels.{name}")


def fused(x: Tensor, impl: str) -> bool:
    """Whether the Triton kernels compute an operation on ``x``.

    "auto" means on CUDA, for the dtypes that the kernels take; float64, and every other device, goes through PyTorch.

    Raises:
        ValueError: for an unknown ``impl``, or "triton" for a dtype that the kernels do not take.
    """
    taken = x.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, not {impl!r}")
    if impl == "triton" and not taken:
        raise ValueError(f"the Triton kernels take float16, bfloat16 and float32, not {x.dtype}: use impl='torch'")
    return taken and (impl == "triton" or (impl == "auto" and x.is_cuda))
