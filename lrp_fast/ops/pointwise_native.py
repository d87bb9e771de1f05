"""What is computed number by number, by the C++ core in one pass over memory: on x86 CPUs with AVX2, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .. import _native
from .attention_native import dense

# Activations whose ratio f(z)/z is a sigmoid of a z + b z^3.
_SIGMOIDS = {"silu": (1.0, 0.0), "gelu_tanh": (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)}


def serves(*operands: Tensor) -> bool:
    """Whether it takes these: numbers in memory, where nobody follows PyTorch's operations (a compiler, or a mode of
    theirs: they would not see this one)."""
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return False
    for x in operands:
        if type(x) not in (Tensor, nn.Parameter) or x.dtype != torch.float32 or not x.is_cpu or x.is_neg():
            return False
    return (_native.has_openmp or torch.get_num_threads() == 1) and _native.pointwise_serves()


def multiplies(kind: str, *operands: Tensor) -> bool:
    """Whether `gated_mlp_backward` takes this activation, and these."""
    return kind in _SIGMOIDS and serves(*operands)


def gated_mlp_backward(
    g: Tensor, gate: Tensor, up: Tensor | None, kind: str, share: float
) -> tuple[Tensor | None, Tensor]:
    """Relevance gradients of gate (None where ``up`` is: the gate is a constant) and up, each ``share`` of the product
    of f(gate)/gate, ``g`` and the other factor."""
    columns = gate.shape[-1] if gate.ndim else 1
    rows = gate.shape[:-1].numel()
    found = [None if t is None else torch.empty(gate.shape, dtype=gate.dtype, device="cpu") for t in (up, gate)]
    of_g, of_gate, of_up, *to = (None if t is None else dense(t.reshape(rows, columns)) for t in (g, gate, up, *found))
    _native.gated_mlp_backward(of_g, of_gate, of_up, *_SIGMOIDS[kind], share, *to, torch.get_num_threads())
    return tuple(found)


def rotates(xs: Sequence[Tensor], cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotary` takes these: heads (B, H, T, D) with dense features, whose angles are the same for all."""
    if cos.shape != sin.shape or not serves(*xs, cos, sin):
        return False
    for x in xs:
        if x.ndim != 4 or x.stride(3) != 1:
            return False
        prompts, _, *of_head = x.shape
        if cos.shape not in ((1, 1, *of_head), (prompts, 1, *of_head)):
            return False
    return True


def rotary(xs: Sequence[Tensor], cos: Tensor, sin: Tensor, back: bool) -> list[Tensor]:
    """As `lrp_fast.ops.rotary` of several; with ``back`` what its transpose makes of them. Each lies in memory as it
    did, unless numbers of it shared their place."""
    angles, found = (dense(cos[:, 0]), dense(sin[:, 0])), []
    for x in xs:
        out = torch.empty_like(x)
        if out.stride(3) != 1:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        _native.rotary(dense(x), *angles, out.numpy(), back, torch.get_num_threads())
        found.append(out)
    return found
