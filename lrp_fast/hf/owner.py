"""Whose a model is while it is patched: one thread's, until its block or pass ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from .overlay import is_thread

MARK = "lrp_fast_owner"  # on every module of the model

_turn = threading.Condition()  # held while marks are looked at and made


class Owner(NamedTuple):
    thread: int
    passing: bool  # ends by itself, so that it can be waited for


@contextmanager
def owned(model: nn.Module, passing: bool) -> Iterator[None]:
    """Mark every module of ``model`` as this thread's. A pass of another thread on any of them is waited for.

    Raises:
        RuntimeError: if a module is this thread's already, or in another thread's `patched` block, which may last.
    """
    owner, modules = Owner(threading.get_ident(), passing), list(model.modules())
    with _turn:
        while any(map(_is_passed_elsewhere, modules)):
            _turn.wait()
        for path, module in model.named_modules():
            if MARK in module.__dict__:
                where = path or type(module).__name__
                other = "" if is_thread(module.__dict__[MARK].thread) else " by another thread"
                raise RuntimeError(f"{where!r} is patched already{other}: leave the other lrp_fast.patched block first")
        for module in modules:
            module.__dict__[MARK] = owner
    try:
        yield
    finally:
        with _turn:
            for module in modules:
                del module.__dict__[MARK]
            _turn.notify_all()


def _is_passed_elsewhere(module: nn.Module) -> bool:
    owner = module.__dict__.get(MARK)
    return owner is not None and owner.passing and not is_thread(owner.thread)


def is_ours(module: nn.Module) -> bool:
    """Whether the module is patched, and by the thread that asks."""
    owner = module.__dict__.get(MARK)
    return owner is not None and is_thread(owner.thread)
