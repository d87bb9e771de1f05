"""Pointwise activations: forward, and backward by the identity rule g f(z)/z in closed form or by the derivative."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import DTYPES, Case, as_rows, pointwise, record, tile

KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@triton.jit
def normal_distribution(z):
    """Phi(z), float32, to 7e-8 of 1: as much as (1 + erf(z / sqrt 2)) / 2 keeps there, and below 0 relatively more.

    The logarithm of Phi(-|z|) is so smooth that a polynomial gives it, for one exponential and half of `tl.erf`'s
    operations, which took longer than the kernel's bytes. Fitted for |z| < 8, weighted by Phi(-|z|); beyond, it falls
    to -inf.
    """
    t = tl.abs(z)
    p = 9.475870683672838e-07 - t * 3.13387253925157e-08
    p = 8.239050657721236e-05 - t * (1.20264385259361e-05 - t * p)
    p = 2.7883212169399485e-05 - t * (0.00029716314747929573 - t * p)
    p = -0.052432648837566376 + t * (0.0069238245487213135 + t * p)
    p = -1.151104211807251 + t * (-0.4592217206954956 + t * p)
    r = tl.exp2(-1.0 + t * p)
    return tl.where(z > 0, 1.0 - r, r)


@triton.jit
def ratio(z, KIND: tl.constexpr):
    """f(z) / z with its limit at 0, float32."""
    if KIND == "silu":
        r = tl.sigmoid(z)
    elif KIND == "gelu":
        r = normal_distribution(z)
    elif KIND == "gelu_tanh":
        # (1 + tanh u) / 2 = sigmoid(2 u), with 2 u = sqrt(8 / pi) (z + 0.044715 z^3)
        r = tl.sigmoid(1.5957691216057308 * z * (1 + 0.044715 * z * z))
    elif KIND == "relu":
        r = tl.where(z > 0, 1.0, 0.0)
    else:
        tl.static_assert(KIND == "relu2")
        r = tl.where(z > 0, z, 0.0)
    return r


@triton.jit
def derivative(z, r, KIND: tl.constexpr):
    """f'(z), float32, from z and r = f(z) / z."""
    if KIND == "silu":
        d = r * (1 + z * (1 - r))
    elif KIND == "gelu":
        d = r + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    elif KIND == "gelu_tanh":
        # 1 - tanh(u)^2 = 4 r (1 - r), and 1 - r without its cancellation where r is close to 1
        s = tl.sigmoid(-1.5957691216057308 * z * (1 + 0.044715 * z * z))
        d = r + z * r * s * (1.5957691216057308 * (1 + 0.134145 * z * z))
    elif KIND == "relu":
        d = r
    else:
        d = 2 * r
    return d


@triton.jit
def activation_forward_kernel(
    z, y, rows, features, stride_zr, stride_zf, stride_yr, stride_yf,
    KIND: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, mask = tile(rows, features, BLOCK_R, BLOCK_F)
    b_z = tl.load(z + o_r * stride_zr + o_f * stride_zf, mask=mask, other=0).to(tl.float32)
    b_y = b_z * ratio(b_z, KIND)
    tl.store(y + o_r * stride_yr + o_f * stride_yf, b_y.to(y.dtype.element_ty), mask=mask)


@triton.jit
def activation_backward_kernel(
    g, z, g_in, rows, features, stride_gr, stride_gf, stride_zr, stride_zf, stride_or, stride_of,
    KIND: tl.constexpr, RATIO: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, mask = tile(rows, features, BLOCK_R, BLOCK_F)
    b_g = tl.load(g + o_r * stride_gr + o_f * stride_gf, mask=mask, other=0).to(tl.float32)
    b_z = tl.load(z + o_r * stride_zr + o_f * stride_zf, mask=mask, other=0).to(tl.float32)
    b_s = ratio(b_z, KIND)
    if not RATIO:
        b_s = derivative(b_z, b_s, KIND)
    tl.store(g_in + o_r * stride_or + o_f * stride_of, (b_g * b_s).to(g_in.dtype.element_ty), mask=mask)


def activation_forward(z: Tensor, kind: str) -> Tensor:
    """f(z), (..., D) of any strides; ``kind`` is one of `KINDS`."""
    y = z.new_empty(z.shape)
    pointwise(activation_forward_kernel, [as_rows(z), as_rows(y)], KIND=kind)
    return y


def activation_backward(g: Tensor, z: Tensor, kind: str, *, ratio: bool) -> Tensor:
    """g f(z)/z, or g f'(z) where not ``ratio``; (..., D) of any strides, of z's dtype."""
    g_in = z.new_empty(z.shape)
    pointwise(activation_backward_kernel, [as_rows(t) for t in (g, z, g_in)], KIND=kind, RATIO=ratio)
    return g_in


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    calls = {}
    sizes = [(kind, dtype, 4096) for kind in KINDS for dtype in (DTYPES if kind == "silu" else DTYPES[1:2])]
    for kind, dtype, features in [*sizes, ("silu", DTYPES[1], 4095)]:
        z = torch.empty(4097, features, dtype=dtype, device="meta")
        name = f"{kind}-{dtype}{'-odd' * (features % 2)}".replace("torch.", "")
        calls[f"activation_forward-{name}"] = lambda z=z, kind=kind: activation_forward(z, kind)
        for by_ratio in (True, False):
            calls[f"activation_backward-{name}-{'ratio' if by_ratio else 'derivative'}"] = (
                lambda z=z, kind=kind, by_ratio=by_ratio: activation_backward(z, z, kind, ratio=by_ratio)
            )
    return record(calls, on)
