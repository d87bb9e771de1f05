"""Linear maps under the epsilon and gamma rules (see `lrp_fast.reference.linear` for the definitions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import fused, kernels, table
from .once import once
from .rows import active_columns, active_rows

_FEW = 32  # rows, as the kernel's tiles for few of them are
_MANY = 8192  # outputs, from which on it is worth a look whether few of them carry relevance, as of a vocabulary
_SHORT = 256  # rows, up to which autograd's own transpose is the faster one (measured: of 2,048 it is 5 % slower)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 0.0,
    gamma: float = 0.0,
    impl: str = "auto",
    skip: bool = True,
) -> Tensor:
    """``x @ weight.T + bias``, differentiable in ``x`` under the epsilon or gamma rule.

    Args:
        x: (..., in), any float dtype.
        weight: (out, in). bias: (out,) or None. Neither gets a gradient.
        epsilon: absolute stabiliser, >= 0; gamma: weight of the same-signed contributions, >= 0. Both 0: the transpose.
        impl: as in `activation`. The plain transpose is PyTorch's own product whatever it says. Under "auto" the gamma
            rule goes by PyTorch's products too, with |x| and |W| beside x and W, but for up to 32 rows, where reading W
            takes the time, and in float16, which may not hold its sums.

    Raises:
        ValueError: for a negative stabiliser.

    Returns:
        (..., out), the same bits as ``torch.nn.functional.linear`` but where the Triton kernel makes it (gamma > 0).
    """
    check_stabilisers(epsilon, gamma)
    if not (skip or epsilon or gamma) and x.numel() <= _SHORT * x.shape[-1]:
        return F.linear(x, weight.detach(), None if bias is None else bias.detach())
    served = x.dtype == weight.dtype and not (gamma and _is_faster_by_products(x))
    return _Linear.apply(x, weight, bias, epsilon, gamma, fused(x, impl, served=served))


def _is_faster_by_products(x: Tensor) -> bool:
    """Whether the gamma rule by PyTorch's products takes less time than by our kernel, which forms |W| from each tile
    of W and copies nothing: of 4,096 rows on an H200 0.68 of it in bfloat16, 0.23 in float32
    (benchmarks/results/kernels.json)."""
    return x.dtype != torch.float16 and x.numel() > _FEW * x.shape[-1]


def check_stabilisers(epsilon: float, gamma: float) -> None:
    if not (epsilon >= 0 and gamma >= 0):
        raise ValueError(f"epsilon and gamma must be numbers >= 0, not {epsilon!r} and {gamma!r}")


def linear_unread(x: Tensor, weight: Tensor) -> Tensor:
    """A linear map whose output nobody reads: only its transpose is computed, in the backward pass.

    Returns:
        (..., out), all NaN, without memory of its own: whoever read it after all would be noticed.
    """
    return _Unread.apply(x, weight, None, 0.0, 0.0, False)


def linear_jvp(
    x: Tensor,
    part: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 0.0,
    gamma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``linear(x, ...)``, and what ``part``, a share of ``x``, contributes to it under the rule. Not differentiable.

    The transpose of the backward pass: the inner product of the second result with any ``g`` is that of ``part`` with
    the relevance gradient that `linear` hands back for ``g``. The bias contributes to neither.
    """
    z = F.linear(x, weight, bias)
    return z, contribution(x, part, weight, bias, z, epsilon, gamma)


def contribution(x, part, weight, bias, z, epsilon, gamma):
    """The second result of `linear_jvp`, from the first, ``z``."""
    through = F.linear(part, weight)
    if gamma:
        t = signed_factor(x, weight, bias, z, epsilon, gamma)
        same = F.linear(part * x.sign(), weight.abs().mul_(gamma / 2))
        through = through.mul_(1 + gamma / 2).mul_(t.abs()).addcmul_(t, same)
    elif epsilon:
        size = z.abs()
        through.mul_(size / (size + epsilon).clamp_(min=torch.finfo(size.dtype).tiny))
    return through


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, epsilon, gamma, fused):
        ctx.epsilon, ctx.gamma, ctx.fused = epsilon, gamma, fused
        if fused and gamma:
            z, t = kernels("linear").gamma_forward(x, weight, bias, epsilon, gamma, table=table(x))
            ctx.save_for_backward(weight, x, t)
            return z
        z = F.linear(x, weight, bias)
        if gamma:
            ctx.save_for_backward(weight, x, signed_factor(x, weight, bias, z, epsilon, gamma))
        elif epsilon:
            ctx.save_for_backward(weight, z)
        else:
            ctx.save_for_backward(weight)
        return z

    @staticmethod
    @once
    def backward(ctx, g):
        weight, *saved = ctx.saved_tensors

        def back(g, saved):
            if not saved and g.numel() <= _FEW * g.shape[-1] and weight.shape[0] >= _MANY:
                flat = g.reshape(-1, g.shape[-1])
                if (columns := active_columns(flat)) is not None:
                    return (flat[:, columns] @ weight[columns]).view(*g.shape[:-1], weight.shape[1])
            return relevance_gradient(g, weight, saved, ctx.epsilon, ctx.gamma, ctx.fused)

        return of_active_rows(back, g, saved), None, None, None, None, None


class _Unread(_Linear):
    @staticmethod
    def forward(ctx, x, weight, bias, epsilon, gamma, fused):
        ctx.epsilon, ctx.gamma, ctx.fused = epsilon, gamma, fused
        ctx.save_for_backward(weight)
        return x.new_full((), torch.nan).expand(*x.shape[:-1], weight.shape[0])


def signed_factor(x, weight, bias, z, epsilon, gamma):
    """t = sigma s / g, one number an output that holds both the factor |t| and the sign of z that the backward needs.

    With a = |x||W|^T + |b|, the denominator z + gamma z^sigma + epsilon sigma is
    sigma ((1 + gamma/2)|z| + gamma/2 a + epsilon).
    """
    # gamma/2 and epsilon go into |W| and |b|, which are small beside the rows.
    size = weight.abs().mul_(gamma / 2)
    offset = None if bias is None else bias.abs().mul_(gamma / 2).add_(epsilon)
    if bias is None and epsilon:
        offset = weight.new_full(weight.shape[:1], epsilon)
    denominator = F.linear(x.abs(), size, offset).add_(z.abs(), alpha=1 + gamma / 2)
    if z.dtype == torch.float16 and denominator.isinf().any():
        raise ValueError("the gamma rule's sums exceed float16: load the model in bfloat16 or float32")
    denominator.clamp_(min=torch.finfo(z.dtype).tiny)  # 0 only where z is 0 too: nothing passes there
    return torch.div(z, denominator, out=denominator)


def of_active_rows(back, g, saved):
    """``back(g, saved)``, whose rows are those of ``g`` and of each tensor saved, for those that carry anything."""
    flat = g.reshape(-1, g.shape[-1])
    rows = active_rows(flat)
    if rows is None:
        return back(g, saved)
    few = back(flat[rows], [t.reshape(-1, t.shape[-1])[rows] for t in saved])
    g_in = few.new_zeros(g.shape[:-1].numel(), few.shape[-1]).index_copy_(0, rows, few)
    return g_in.view(*g.shape[:-1], -1)


def relevance_gradient(g, weight, saved, epsilon, gamma, fused):
    """That of the input. ``saved``: x and the signed factor for gamma, z for epsilon alone, otherwise nothing."""
    if gamma:
        x, t = saved
        if fused:
            return kernels("linear").gamma_backward(g, x, t, weight, gamma, table=table(x))
        s = g * t
        g_in = (s @ weight.abs().mul_(gamma / 2)).mul_(x.sign())
        torch.mul(g, t.abs(), out=s)
        return g_in.add_(s.mul_(1 + gamma / 2) @ weight)
    if epsilon and fused:
        g = kernels("linear").epsilon_factor(g, saved[0], epsilon)
    elif epsilon:
        size = saved[0].abs()
        g = size.div_((size + epsilon).clamp_(min=torch.finfo(size.dtype).tiny)).mul_(g)
    return g @ weight
