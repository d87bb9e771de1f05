"""Linear maps whose matrix is at hand a few rows at a time: quantised, or a sum that is never formed whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .linear import check_stabilisers, contribution, of_active_rows, relevance_gradient, signed_factor
from .once import once

_TILE = 1 << 24  # elements of the matrix that exist at a time: enough rows to keep the matrix units busy

Rows = Callable[[int, int], Tensor]  # (start, stop) -> those rows of an (out, in) matrix, in any float dtype


def linear_by_rows(
    x: Tensor, z: Tensor, rows: Rows, bias: Tensor | None = None, *, epsilon: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """``z``, differentiable in ``x`` under the epsilon or gamma rule as ``linear(x, W, bias)`` is.

    Whoever made ``z`` may have rounded ``x`` as well (a product of integers): relevance goes back through W all the
    same. PyTorch computes it on every device.

    Args:
        x: (..., in), any float dtype.
        z: (..., out) in the same dtype, without gradients: x @ W.T + bias, as the model computes it.
        rows: of W. The backward pass asks again.
        bias: (out,) or None; the gamma rule alone looks at it.
        epsilon, gamma: as in `linear`.

    Raises:
        ValueError: for a negative stabiliser.
        RuntimeError: where rows are on the "meta" device, without ``x`` being there: adding them would do nothing.
    """
    check_stabilisers(epsilon, gamma)
    return _LinearByRows.apply(x, z, rows, bias, epsilon, gamma)


def linear_by_rows_jvp(
    x: Tensor,
    part: Tensor,
    z: Tensor,
    rows: Rows,
    bias: Tensor | None = None,
    *,
    epsilon: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """What ``part``, a share of ``x``, contributes to `linear_by_rows`: the second result of `linear_jvp`."""
    through = torch.empty_like(z)
    for tile in _tiles(z, x):
        weight = _weight(rows, tile, x)
        through[..., tile] = contribution(x, part, weight, _of(bias, tile, x), z[..., tile], epsilon, gamma)
        del weight  # before there is another
    return through


class _LinearByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, rows, bias, epsilon, gamma):
        ctx.rows, ctx.epsilon, ctx.gamma, ctx.inner = rows, epsilon, gamma, x.shape[-1]
        if gamma:
            t = torch.empty_like(z)
            for tile in _tiles(z, x):
                weight = _weight(rows, tile, x)
                t[..., tile] = signed_factor(x, weight, _of(bias, tile, x), z[..., tile], epsilon, gamma)
                del weight
            ctx.save_for_backward(x, t)
        elif epsilon:
            ctx.save_for_backward(z)
        return z

    @staticmethod
    @once
    def backward(ctx, g):
        def back(g, saved):
            inputs, outputs = saved[:-1], saved[-1:]
            g_in = g.new_zeros(*g.shape[:-1], ctx.inner, dtype=torch.promote_types(g.dtype, torch.float32))
            for tile in _tiles(g, g_in):
                weight = _weight(ctx.rows, tile, g)
                of_tile = [*inputs, *(t[..., tile] for t in outputs)]
                g_in += relevance_gradient(g[..., tile], weight, of_tile, ctx.epsilon, ctx.gamma, False)
                del weight
            return g_in.to(g.dtype)

        return of_active_rows(back, g, list(ctx.saved_tensors)), None, None, None, None, None


def _tiles(outputs: Tensor, inputs: Tensor) -> Iterator[slice]:
    """Parts of the rows of a matrix between these features."""
    count = max(1, _TILE // inputs.shape[-1])
    for start in range(0, outputs.shape[-1], count):
        yield slice(start, min(start + count, outputs.shape[-1]))


def _weight(rows: Rows, tile: slice, like: Tensor) -> Tensor:
    weight = rows(tile.start, tile.stop)
    if weight.is_meta and not like.is_meta:
        raise RuntimeError(
            "the matrix of a linear map is on the meta device, without numbers, where its input is not: keep its "
            "weights loaded until the backward pass is done"
        )
    return weight.to(like.dtype)


def _of(bias: Tensor | None, tile: slice, x: Tensor) -> Tensor | None:
    return None if bias is None else bias[tile].to(x.dtype)
