"""What one operation in one form is: its inputs, how it is called, what it is by definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Size:
    """How large the tensors of the cases are: odd numbers, for a kernel's last tile is then one that is not full."""

    tokens: int
    edges: int  # queries whose edges are computed: the definition takes a backward pass for each
    head_dims: tuple[int, ...]  # the first in every form, the others in the plain ones
    features: int
    rows: int


# Several tiles of every kind on a GPU; one where Triton's interpreter, which takes milliseconds a step, runs them.
FULL = Size(tokens=303, edges=99, head_dims=(64, 80, 128, 256), features=333, rows=71)
SMALL = Size(tokens=37, edges=19, head_dims=(16,), features=65, rows=35)


@dataclass(frozen=True)
class Case:
    """One operation in one form.

    Attributes:
        operation: its name, "attention backward" say. form: what is particular, "window" say.
        draw: makes the inputs, floats in float32 and on the CPU, of a generator.
        prepare: ``prepare(impl, *inputs)`` gives the call that is held, or timed: of a backward pass the forward one
            lies behind. It returns a tuple of tensors; None is not looked at.
        define: ``define(found, *inputs)`` gives as many tensors by definition. ``found`` is what the call returned:
            which of nearly equal edges it took is its own affair.
        terms: for each of these, how many numbers a sum behind it has.
        narrow: for each, how many numbers on the way are rounded to 16 bits where the working dtype has so many.
        slope: ``slope(*inputs)``, what the form does to roundings, see `lrp_fast.reference.rounding`.
    """

    operation: str
    form: str
    draw: Callable[[torch.Generator], Inputs]
    prepare: Callable[..., Callable[[], tuple[Tensor | None, ...]]]
    define: Callable[..., tuple[Tensor, ...]]
    terms: tuple[float, ...]
    narrow: tuple[float, ...] = (4, 4, 4)
    slope: Callable[..., float] = lambda *_: 1.0

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.form}"


def through(call: Callable[..., Tensor | tuple[Tensor, ...]], g: Inputs, *inputs: Tensor) -> Callable[[], Inputs]:
    """The backward pass of ``call(*leaves)``, to be run as often as one likes, towards ``inputs``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    return lambda: torch.autograd.grad(outs, leaves, g, retain_graph=True, allow_unused=True)
