"""Instance attributes laid over modules for the length of a ``with`` block: the one way in which models are changed.

What is laid is there for one thread alone. Any other that runs the module in the meantime gets what was covered, or is
refused.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from ..rules import Rules
from .threads import here, is_autograds

Overlay = dict[str, Any]  # what a handler lays over its module: attribute -> value
Handler = Callable[[nn.Module, Rules], Overlay]
_NOTHING = object()


def told(module: nn.Module, **settings: Any) -> tuple[nn.Module, str, object]:
    """For `laid`: the module's config, saying this instead."""
    config = copy.copy(module.config)
    for name, value in settings.items():
        setattr(config, name, value)
    return module, "config", config


@contextmanager
def laid(overlays: Iterable[tuple[nn.Module, str, object]], refusal: str | None = None) -> Iterator[None]:
    """Lay each (module, attribute, value) over its module; what it covers comes back, also after an exception.

    In other threads, functions are the covered ones, or raise ``refusal`` where there is one (but not in autograd's: on
    CUDA, what a checkpointed part computes anew in a backward pass is the block's own), and a config or a part of the
    module is the covered one.
    """
    owner, covered, seen = here(), [], []
    try:
        for module, name, value in overlays:
            under = module.__dict__.get(name, _NOTHING)
            covered.append((module, name, under))
            if name == "config" or name in module._modules:
                value = _Seen(value, getattr(module, name), owner)
                seen.append(value)
            elif callable(value):
                value = _Laid(value, _covered(module, name, under), owner, refusal)
            module.__dict__[name] = value
        yield
    finally:
        for module, name, under in reversed(covered):
            if under is _NOTHING:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = under
        for one in seen:  # whoever has kept one
            object.__setattr__(one, "ours", object.__getattribute__(one, "theirs"))


def forward_name(module: nn.Module) -> str:
    """The attribute that holds the module's own forward pass: accelerate puts one of its own before it."""
    return "_old_forward" if "_hf_hook" in module.__dict__ else "forward"


def forward_of(module: nn.Module) -> Callable:
    """The module's own forward pass, as it is written: what torch.compile was given, not what it made of it."""
    return uncompiled(getattr(module, forward_name(module)))


def calling(module: nn.Module, **functions: Callable) -> Callable:
    """The forward pass of the module's class and what wraps it, but that its code finds these functions by their names.
    What torch.compile was given counts, not what it made of it.

    Raises:
        TypeError: for a forward pass that `written` does not see through.
    """
    own = uncompiled(type(module).forward)
    if written(own) is None:
        raise TypeError(f"{type(module).__name__}.forward is wrapped by what does not show its code: unwrap it")
    return MethodType(_finding(own, functions), module)


def written(function: Callable) -> FunctionType | None:
    """The function under wrappers that keep it in their closure, as decorators do, and nothing made from it; None under
    others."""
    while type(function) is FunctionType and hasattr(function, "__wrapped__"):
        inner = function.__wrapped__
        held = [_held(cell) for cell in function.__closure__ or ()]
        others = [one for one in held if one is not inner and getattr(one, "__wrapped__", None) is inner]
        function = inner if not others and any(one is inner for one in held) else None
    return function if type(function) is FunctionType else None


def _finding(function: FunctionType, functions: dict[str, Callable]) -> FunctionType:
    names, closure = function.__globals__, function.__closure__
    if hasattr(function, "__wrapped__"):
        inner = _finding(function.__wrapped__, functions)
        held = CellType(inner)
        closure = tuple(held if _held(cell) is function.__wrapped__ else cell for cell in closure)
        told = {"__wrapped__": inner}
    else:
        names, told = names | functions, {}
    found = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    found.__kwdefaults__ = function.__kwdefaults__
    found.__dict__.update(function.__dict__ | told)
    return found


def _held(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def replaced(module: nn.Module) -> bool:
    """Whether somebody has put a forward pass of another's in place of the one of the module's class."""
    own = getattr(module, forward_name(module))
    while isinstance(own, _Laid):
        own = own.theirs
    if is_compiled(own):  # a wrapper's is the call of what it wraps; that of PyTorch's own modules is wrapped once more
        own = uncompiled(own)
        own = getattr(own, "__wrapped__", own)
    known = [nn.Module.__call__, type(module).forward]
    while hasattr(known[-1], "__wrapped__"):  # accelerate may keep one that its class has wrapped since
        known.append(known[-1].__wrapped__)
    return getattr(own, "__func__", own) not in known


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


class _Laid:
    """A function for one thread, and what it covers, or a refusal, for all others."""

    def __init__(self, ours: Callable, theirs: Callable | None, owner: object, refusal: str | None) -> None:
        self.ours, self.theirs, self.owner, self.refusal = ours, theirs, owner, refusal

    def __call__(self, *args, **named):
        if here() is self.owner:
            return self.ours(*args, **named)
        if self.refusal is None:
            return self.theirs(*args, **named)
        if is_autograds():
            return self.ours(*args, **named)
        raise RuntimeError(self.refusal)

    @property
    def __wrapped__(self) -> Callable:  # for inspect.signature
        return self.ours

    def __getattr__(self, name):
        return getattr(self.ours, name)

    def __reduce_ex__(self, protocol):
        raise RuntimeError("a model cannot be copied, or saved whole, while lrp_fast is at work with it: wait for that")


class _Seen:
    """One object for one thread, and another for all others; the other for all once its block has ended."""

    __slots__ = ("__weakref__", "ours", "owner", "theirs")

    def __init__(self, ours: object, theirs: object, owner: object) -> None:
        for name, value in (("ours", ours), ("theirs", theirs), ("owner", owner)):
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
    return own("ours") if here() is own("owner") else own("theirs")
