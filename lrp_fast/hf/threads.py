"""Which thread asks. What is laid over a model, and the model while it is patched, belong to one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_own = threading.local()


def here() -> object:
    """What stands for the thread that asks. Unlike its number, no thread to come gets it."""
    try:
        return _own.token
    except AttributeError:
        _own.token = object()
        return _own.token


@contextmanager
def acting_for(token: object) -> Iterator[None]:
    """Within the block, the thread that runs it counts as the one that ``token`` stands for."""
    before, _own.token = here(), token
    try:
        yield
    finally:
        _own.token = before


def is_autograds() -> bool:
    """Whether it is a thread of autograd's own, at work on a backward pass: on CUDA each runs in one."""
    within_backward = torch._C._current_graph_task_id() != -1
    return within_backward and isinstance(threading.current_thread(), threading._DummyThread)
