"""Relevance of a node: what all of the package is for, and no differentiable operation."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import fused, kernels


def node_relevance(x: Tensor, g: Tensor, *, impl: str = "auto") -> Tensor:
    """Sum over the last dimension of ``x * g``: hidden states (..., D) and their relevance gradient -> (...).

    Summed in float32, in float64 where either is.

    Args:
        impl: as in `activation`.
    """
    x, g = x.detach(), g.detach()
    if fused(x, impl) and fused(g, impl):
        return kernels("relevance").node_relevance(x, g)
    wide = torch.promote_types(torch.promote_types(x.dtype, g.dtype), torch.float32)
    return torch.linalg.vecdot(x.to(wide), g.to(wide))
