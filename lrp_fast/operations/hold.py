"""One operation on a device, held against its definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import rounding
from .case import Case, Inputs
from .witness import watched


class Held(NamedTuple):
    """How one operation came out.

    Attributes:
        operation, form: the case's.
        dtype: of the inputs.
        path: who computed it, "triton", "vendor" (PyTorch's own attention on CUDA) or "torch"; "" if nobody got so far.
        tiles: that its kernels were launched with, queries x keys, warps and stages; none where a table has no row.
        error: how far it is from its definition, relative to the largest number of the tensor (or, where that is closer
            to its limit, the mean error relative to the mean); of all its tensors, that one closest to its limit.
        allowed: how far it may be, see `lrp_fast.reference.rounding`.
        same_bits: whether a second call gave the same bits.
        failed: what was raised, in one line; empty otherwise.
    """

    operation: str
    form: str
    dtype: str
    path: str
    tiles: tuple[str, ...]
    error: float
    allowed: float
    same_bits: bool
    failed: str = ""

    @property
    def repeats(self) -> bool:
        """Whether its bits are as they should be: the vendor's backward pass adds by atomics, and may change them."""
        return self.same_bits or (self.path == "vendor" and self.operation == "attention backward")

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed and self.repeats and not self.failed


def hold(case: Case, device: torch.device, dtype: torch.dtype, impl: str = "auto") -> Held:
    """Runs ``case`` on ``device`` by ``impl``, twice, and holds what it gives against the definition, on the CPU.

    Whatever is raised is an answer, too.
    """
    named = (case.operation, case.form, str(dtype).removeprefix("torch."))
    try:
        drawn = case.draw(torch.Generator().manual_seed(0))
        inputs = tuple(x.to(dtype) if _is_float(x) else x for x in drawn)
        call = case.prepare(impl, *(None if x is None else x.to(device) for x in inputs))
        found, seen = watched(call, device)
        again = call()
        same_bits = all(_same(one, other) for one, other in zip(found, again, strict=True))
        with torch.no_grad():
            error, allowed = _worst(case, tuple(None if x is None else x.detach().cpu() for x in found), inputs)
    except Exception as raised:  # from a compiler that crashes to a launch that a device refuses
        why = f"{type(raised).__name__}: {(str(raised).strip() or 'no words').splitlines()[0]}"
        return Held(*named, "", (), float("nan"), float("nan"), False, why)
    return Held(*named, *seen, error, allowed, same_bits)


def _worst(case: Case, found: Inputs, inputs: Inputs) -> tuple[float, float]:
    """The relative error closest to its limit, and that limit."""
    exact = tuple(x.double() if _is_float(x) else x for x in inputs)
    truths, plains = case.define(found, *exact), case.define(found, *inputs)
    slope = case.slope(*exact)
    errors = []
    for one, plain, truth, *counts in zip(found, plains, truths, case.terms, case.narrow, strict=False):
        if (one is None) != (truth is None):
            raise AssertionError(f"it gives {'nothing' if one is None else 'something'} where its definition does not")
        if one is None:
            continue
        roundings = slope**2 * rounding.summed(plain.dtype, *counts)
        errors += rounding.errors(one.to(plain.dtype), plain, truth, roundings)
    worst = max(errors, key=lambda one: _share(one.found, one.allowed))
    scale = worst.scale or 1.0
    return worst.found / scale, worst.allowed / scale


def _share(found: float, allowed: float) -> float:
    """Of its limit; an error that is no number is beyond any."""
    if not found <= allowed:
        return float("inf")
    return found / allowed if allowed else 0.0


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit for bit, -0 and 0 apart."""
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _is_float(x: Tensor | None) -> bool:
    return x is not None and x.is_floating_point()
