"""Instance attributes laid over modules for the length of a ``with`` block: the one way in which models are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

_NOTHING = object()


@contextmanager
def laid(overlays: Iterable[tuple[nn.Module, str, object]]) -> Iterator[None]:
    """Lay each (module, attribute, value) over its module; what it covers comes back, also after an exception."""
    covered = []
    try:
        for module, name, value in overlays:
            covered.append((module, name, module.__dict__.get(name, _NOTHING)))
            module.__dict__[name] = value
        yield
    finally:
        for module, name, value in reversed(covered):
            if value is _NOTHING:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value


def forward_name(module: nn.Module) -> str:
    """The attribute that holds the module's own forward pass: accelerate puts one of its own before it."""
    return "_old_forward" if "_hf_hook" in module.__dict__ else "forward"


def forward_of(module: nn.Module) -> Callable:
    return getattr(module, forward_name(module))
