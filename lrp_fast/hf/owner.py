"""Whose a model is while it is patched: one thread's, until its block or pass ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from .threads import here, is_autograds
from .walk import modules_of, named_modules_of

MARK = "lrp_fast_owner"  # on every module of the model

_turn = threading.Condition()  # held while marks are looked at and made


class Owner(NamedTuple):
    thread: object
    passing: bool  # ends by itself, so that it can be waited for


@contextmanager
def owned(model: nn.Module, passing: bool) -> Iterator[None]:
    """Mark every module of ``model`` as this thread's. A pass of another thread on any of them is waited for.

    Raises:
        RuntimeError: if a module is this thread's already, or in another thread's `patched` block, which may last.
    """
    owner, modules = Owner(here(), passing), modules_of(model)
    try:
        with _turn:
            while any(map(_is_passed_elsewhere, modules)):
                _turn.wait()
            for module in modules:
                if (other := module.__dict__.get(MARK)) is not None:
                    path = next(path for path, one in named_modules_of(model) if one is module)
                    raise RuntimeError(f"{path or type(module).__name__!r} {_why(other)}")
            for module in modules:
                module.__dict__[MARK] = owner
        yield
    finally:
        with _turn:
            for module in modules:
                if module.__dict__.get(MARK) is owner:
                    del module.__dict__[MARK]
            _turn.notify_all()


def _is_passed_elsewhere(module: nn.Module) -> bool:
    owner = module.__dict__.get(MARK)
    return owner is not None and owner.passing and owner.thread is not here()


def _why(other: Owner) -> str:
    if other.passing:
        return "is at work in a pass of lrp_fast that this call comes from: wait until that has ended"
    where = "" if other.thread is here() else " by another thread"
    return f"is patched already{where}: leave the other lrp_fast.patched block first"


def is_ours(module: nn.Module) -> bool:
    """Whether the module is patched, and by the thread that asks."""
    owner = module.__dict__.get(MARK)
    return owner is not None and (owner.thread is here() or (not owner.passing and is_autograds()))
