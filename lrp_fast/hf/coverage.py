"""Every module must have a handler: what no rule covers is refused, never passed over."""

from __future__ import annotations

from torch import nn

from .families import FAMILIES, handler_of


class UnsupportedModuleError(TypeError):
    """A model holds a module that no propagation rule covers."""


def check(model: nn.Module) -> None:
    """Raise `UnsupportedModuleError` for the first module of ``model`` that has no handler."""
    for path, module in model.named_modules():
        if handler_of(module) is None:
            name = type(module).__name__
            where = f"module {path!r}, a {name}" if path else f"the model itself, a {name}"
            raise UnsupportedModuleError(
                f"no propagation rule covers {where} (families covered: {', '.join(FAMILIES)}): register one with "
                f"lrp_fast.hf.register({name}, handler), where lrp_fast.hf.handlers has ready ones"
            )
