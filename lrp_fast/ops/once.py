"""What a backward pass by a propagation rule does not do, it says."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def once(backward: Callable) -> Callable:
    """A Function's ``backward(ctx, *g)``, a ``g`` for each output, one at a time, which nobody differentiates again.

    It looks at data, to skip what carries no relevance, and launches kernels, none of which a batched tensor allows;
    and the statistics that it keeps are cut off from their inputs, so that a second derivative would lack their part.

    Raises:
        ValueError: under ``create_graph=True``, ``is_grads_batched=True`` or ``torch.func.vmap``.
    """

    @functools.wraps(backward)
    def checked(ctx, *g):
        if torch.is_grad_enabled():  # in a backward pass: by create_graph=True alone
            raise ValueError("relevance gradients cannot be differentiated again: leave out create_graph=True")
        if not all(_has_memory(one) for one in g if one is not None):
            raise ValueError(
                "relevance gradients are computed one at a time: "
                "call torch.autograd.grad for each instead of is_grads_batched=True or vmap"
            )
        return backward(ctx, *g)

    return checked


def _has_memory(g):
    """Whether ``g`` is a tensor of its own; those that vmap makes are not, of either of PyTorch's two kinds."""
    try:
        g.untyped_storage()
    except NotImplementedError:
        return False
    return True
