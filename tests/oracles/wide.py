"""A float64 model that computes in float64 throughout, where its code asks for float32."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CASTS = {Tensor.float, Tensor.to, Tensor.type}


class _Wide(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.dtype != torch.float64:
            return func(*args, **kwargs)
        if func not in _CASTS and kwargs.get("dtype") == torch.float32:
            del kwargs["dtype"]
        out = func(*args, **kwargs)
        return x if func in _CASTS and isinstance(out, Tensor) and out.dtype == torch.float32 else out


@contextlib.contextmanager
def wide(*models):
    """Within the block, casts of float64 tensors to float32 do nothing, and the models' buffers are of float64."""
    kept = [(one, one.data) for model in models for one in model.buffers() if one.dtype == torch.float32]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for one, data in kept:
            one.data = data.double()
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(default)
        for one, data in kept:
            one.data = data
