"""Instance attributes laid over modules for the length of a ``with`` block: the one way in which models are changed.

What is laid is there for one thread alone. Any other thread that runs the module in the meantime gets what was covered,
or is refused; it never gets a number that the block's own work has made.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn

_NOTHING = object()


@contextmanager
def laid(overlays: Iterable[tuple[nn.Module, str, object]], refusal: str | None = None) -> Iterator[None]:
    """Lay each (module, attribute, value) over its module; what it covers comes back, also after an exception.

    In other threads, functions are the covered ones, or raise ``refusal`` where there is one, and a config or a part of
    the module is the covered one.
    """
    thread, covered = threading.get_ident(), []
    try:
        for module, name, value in overlays:
            under = module.__dict__.get(name, _NOTHING)
            covered.append((module, name, under))
            if name == "config" or name in module._modules:
                value = _Seen(value, getattr(module, name), thread)
            elif callable(value):
                value = _for(thread, value, _covered(module, name, under), refusal)
            module.__dict__[name] = value
        yield
    finally:
        for module, name, under in reversed(covered):
            if under is _NOTHING:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = under


def is_thread(thread: int) -> bool:
    """Whether the caller runs in that thread, or in one of autograd's own.

    On CUDA a backward pass runs in threads of autograd's, and what it computes anew belongs to whoever started it.
    """
    if threading.get_ident() == thread:
        return True
    within_backward = torch._C._current_graph_task_id() != -1
    return within_backward and isinstance(threading.current_thread(), threading._DummyThread)


def forward_name(module: nn.Module) -> str:
    """The attribute that holds the module's own forward pass: accelerate puts one of its own before it."""
    return "_old_forward" if "_hf_hook" in module.__dict__ else "forward"


def forward_of(module: nn.Module) -> Callable:
    """The module's own forward pass, as it is written: what torch.compile was given, not what it made of it."""
    return uncompiled(getattr(module, forward_name(module)))


def uncompiled(function: Callable) -> Callable:
    if isinstance(function, MethodType):
        return MethodType(uncompiled(function.__func__), function.__self__)
    return getattr(function, "_torchdynamo_orig_callable", function)


def is_compiled(function: Callable) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable")


def _covered(module: nn.Module, name: str, under: object) -> Callable | None:
    if under is not _NOTHING:
        return under
    of_class = getattr(type(module), name, None)
    return None if of_class is None else MethodType(of_class, module)


def _for(thread: int, ours: Callable, theirs: Callable | None, refusal: str | None) -> Callable:
    @functools.wraps(ours)
    def call(*args, **named):
        if is_thread(thread):
            return ours(*args, **named)
        if refusal is not None:
            raise RuntimeError(refusal)
        return theirs(*args, **named)

    return call


class _Seen:
    """One object for one thread, and another for all others."""

    __slots__ = ("ours", "theirs", "thread")

    def __init__(self, ours: object, theirs: object, thread: int) -> None:
        for name, value in (("ours", ours), ("theirs", theirs), ("thread", thread)):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name):
        return getattr(_seen(self), name)

    def __setattr__(self, name, value):
        setattr(_seen(self), name, value)

    def __delattr__(self, name):
        delattr(_seen(self), name)

    def __call__(self, *args, **named):
        return _seen(self)(*args, **named)

    def __eq__(self, other):
        return _seen(self) == other

    def __repr__(self):
        return repr(_seen(self))

    __hash__ = None


def _seen(one: _Seen) -> object:
    own = functools.partial(object.__getattribute__, one)
    return own("ours") if is_thread(own("thread")) else own("theirs")
