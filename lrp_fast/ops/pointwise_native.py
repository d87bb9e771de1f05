"""What is computed number by number, by the C++ core in one pass over memory: on x86 CPUs with AVX2, in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _native
from .attention_native import dense

# Activations whose ratio f(z)/z is a sigmoid of a z + b z^3.
_SIGMOIDS = {"silu": (1.0, 0.0), "gelu_tanh": (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)}


def serves(x: Tensor) -> bool:
    """Whether it takes this."""
    ours = x.dtype == torch.float32 and x.device.type == "cpu"
    return ours and (_native.has_openmp or torch.get_num_threads() == 1) and _native.pointwise_serves()


def multiplies(kind: str, *operands: Tensor) -> bool:
    """Whether `gated_mlp_backward` takes this activation, and these."""
    return kind in _SIGMOIDS and all(map(serves, operands))


def gated_mlp_backward(
    g: Tensor, gate: Tensor, up: Tensor | None, kind: str, share: float
) -> tuple[Tensor | None, Tensor]:
    """Relevance gradients of gate (None where ``up`` is: the gate is a constant) and up, each ``share`` of the product
    of f(gate)/gate, ``g`` and the other factor."""
    found = (None if up is None else torch.empty(gate.shape), torch.empty(gate.shape))
    of_g, of_gate, of_up, *to = (None if t is None else dense(t.flatten(0, -2)) for t in (g, gate, up, *found))
    _native.gated_mlp_backward(of_g, of_gate, of_up, *_SIGMOIDS[kind], share, *to, torch.get_num_threads())
    return found


def rotates(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotary` takes these: heads (B, H, T, D) with dense features, whose angles are the same for all."""
    if not serves(x) or x.ndim != 4 or x.stride(3) != 1:
        return False
    prompts, _, *of_head = x.shape
    angles = cos.shape == sin.shape and cos.shape in ((1, 1, *of_head), (prompts, 1, *of_head))
    return angles and serves(cos) and serves(sin)


def rotary(xs: tuple[Tensor, ...], cos: Tensor, sin: Tensor, back: bool) -> list[Tensor]:
    """As `lrp_fast.ops.rotary` of several; with ``back`` what its transpose makes of them. Each lies in memory as it
    did."""
    angles, found = (dense(cos[:, 0]), dense(sin[:, 0])), [torch.empty_like(x) for x in xs]
    for x, out in zip(xs, found, strict=True):
        _native.rotary(dense(x), *angles, out.numpy(), back, torch.get_num_threads())
    return found
