"""Rotary positions of attentions that call Llama's function, as most do: by one operation in its place."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType

from torch import Tensor, nn

from .. import ops
from .forms import form
from .overlay import Overlay, calling, uncompiled, written

_NAME, _HALF = "apply_rotary_pos_emb", "rotate_half"
_FORMS = ("4a8f8b85ee37", "7b6c9b425ca0")  # of Llama's two, as `forms` has them


def rotating(module: nn.Module) -> Overlay:
    """The module's own forward pass, but for what turns queries and keys, where that is Llama's; else nothing."""
    return {"forward": calling(module, **{_NAME: _rotated})} if rotates(module) else {}


def rotates(module: nn.Module) -> bool:
    """Whether the code of its class calls these very functions, which nobody has wrapped or replaced."""
    own = written(uncompiled(type(module).forward))
    rotate = None if own is None else own.__globals__.get(_NAME)
    half = rotate.__globals__.get(_HALF) if _is_plain(rotate) else None
    return _is_plain(half) and _are_llamas(rotate, half)


def _is_plain(function: object) -> bool:
    return inspect.isfunction(function) and not hasattr(function, "__wrapped__")


@functools.lru_cache(1024)
def _are_llamas(rotate: FunctionType, half: FunctionType) -> bool:
    return (form(rotate), form(half)) == _FORMS


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return ops.rotary((q, k), cos, sin)
