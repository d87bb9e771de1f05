"""A linear recurrence, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrence(value: Tensor, kept: Tensor) -> Tensor:
    """h_t = kept_t h_{t - 1} + value_t, (B, T, C) all: each channel by itself."""
    state, out = torch.zeros_like(value[:, 0]), []
    for v, k in zip(value.unbind(1), kept.unbind(1), strict=True):
        state = k * state + v
        out.append(state)
    return torch.stack(out, 1)


def recurrence_backward(
    g: Tensor, value: Tensor, kept: Tensor, *, rule: str = "attnlrp"
) -> tuple[Tensor, Tensor | None]:
    """Relevance gradients of what is carried and of what is kept: a constant, but for the gradient, as MambaLRP has it
    (arXiv 2406.07592)."""
    leaves = [value.detach().requires_grad_(), kept.detach().requires_grad_()]
    with torch.enable_grad():
        of_value, of_kept = torch.autograd.grad(recurrence(*leaves), leaves, g)
    return of_value, of_kept if rule == "gradient" else None
