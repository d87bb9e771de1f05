"""Whose a model is while it is patched: one thread's, until its block or pass ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from torch import nn

from ..rules import Rules
from .threads import here, is_autograds
from .walk import modules_of, named_modules_of

T = TypeVar("T")

MARK = "lrp_fast_owner"  # on every module of the model
AT_WORK = "is at work in a pass of lrp_fast that this call comes from: wait until that has ended"

_turn = threading.Condition()  # held while marks are looked at and made


@dataclass(eq=False)
class Session:
    """A model that stays patched between passes, and what is known of it until then."""

    model: nn.Module
    rules: Rules
    known: dict[object, object] = field(default_factory=dict)
    passing: bool = False


class Owner(NamedTuple):
    thread: object
    passing: bool  # ends by itself, so that it can be waited for
    session: Session | None = None


@contextmanager
def owned(model: nn.Module, passing: bool, session: Session | None = None) -> Iterator[None]:
    """Mark every module of ``model`` as this thread's. A pass of another thread on any of them is waited for.

    Raises:
        RuntimeError: if a module is this thread's already, or in another thread's `patched` block, which may last.
    """
    owner, modules = Owner(here(), passing, session), modules_of(model)
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
        return AT_WORK
    where = "" if other.thread is here() else " by another thread"
    block = "lrp_fast.patched" if other.session is None else "lrp_fast.session"
    return f"is patched already{where}: leave the other {block} block first"


def is_ours(module: nn.Module) -> bool:
    """Whether the module is patched, and by the thread that asks."""
    owner = module.__dict__.get(MARK)
    return owner is not None and (owner.thread is here() or (not owner.passing and is_autograds()))


def known(model: nn.Module, find: Callable[[nn.Module], T]) -> T:
    """``find(model)``, once in a session."""
    session = session_of(model)
    if session is None:
        return find(model)
    if find not in session.known:
        session.known[find] = find(model)
    return session.known[find]


def session_of(model: object) -> Session | None:
    """The session that this thread has with the model, and with no more and no less than that, if any."""
    owner = getattr(model, "__dict__", {}).get(MARK)
    found = None if owner is None or owner.thread is not here() else owner.session
    return found if found is not None and found.model is model else None
