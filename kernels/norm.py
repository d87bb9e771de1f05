"""RMSNorm and LayerNorm, each fused with the residual add: forward, and backward with frozen statistics or plainly.

A program holds whole rows in registers, so a row is read once whatever is made of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import DTYPES, Case, as_rows, launch, record, strides, unfused

MAX_FEATURES = 32768  # beyond it a row no longer fits in registers


@triton.jit
def rows_of_program(rows, features, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr):
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    o_f = tl.arange(0, BLOCK_F)[None, :].to(tl.int64)
    return o_r, o_f, (o_r < rows) & (o_f < features)


@unfused
@triton.jit
def norm_forward_kernel(
    x, residual, weight, bias, y, total, mean, rstd, eps, rows, features,
    stride_xr, stride_xf, stride_sr, stride_sf, stride_yr, stride_yf, stride_tr, stride_tf,
    NARROWED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    # RMSNorm where mean is None, otherwise LayerNorm.
    o_r, o_f, mask = rows_of_program(rows, features, BLOCK_R, BLOCK_F)
    b_x = tl.load(x + o_r * stride_xr + o_f * stride_xf, mask=mask, other=0).to(tl.float32)
    if residual is not None:
        b_x += tl.load(residual + o_r * stride_sr + o_f * stride_sf, mask=mask, other=0).to(tl.float32)
        # The norm sees the sum as the next layer will see it, in the working dtype.
        b_x = b_x.to(total.dtype.element_ty)
        tl.store(total + o_r * stride_tr + o_f * stride_tf, b_x, mask=mask)
        b_x = b_x.to(tl.float32)
    if mean is not None:
        b_mean = tl.sum(b_x, axis=1, keep_dims=True) / features
        tl.store(mean + o_r, b_mean, mask=o_r < rows)
        b_x = tl.where(mask, b_x - b_mean, 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_x * b_x, axis=1, keep_dims=True) / features + eps)
    tl.store(rstd + o_r, b_rstd, mask=o_r < rows)
    b_y = b_x * b_rstd
    if weight is not None:
        if mean is None:  # as transformers' RMSNorm: weight * (x * rstd).to(dtype)
            b_y = b_y.to(y.dtype.element_ty) if NARROWED else b_y.to(x.dtype.element_ty)
            b_y = b_y.to(tl.float32)
        b_y *= tl.load(weight + o_f, mask=o_f < features, other=0).to(tl.float32)
    if bias is not None:
        b_y += tl.load(bias + o_f, mask=o_f < features, other=0).to(tl.float32)
    tl.store(y + o_r * stride_yr + o_f * stride_yf, b_y.to(y.dtype.element_ty), mask=mask)


@unfused
@triton.jit
def norm_backward_kernel(
    g, x, weight, mean, rstd, g_residual, g_in, rows, features,
    stride_gr, stride_gf, stride_xr, stride_xf, stride_sr, stride_sf, stride_or, stride_of,
    FROZEN: tl.constexpr, CENTRED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, mask = rows_of_program(rows, features, BLOCK_R, BLOCK_F)
    b_g = tl.load(g + o_r * stride_gr + o_f * stride_gf, mask=mask, other=0).to(tl.float32)
    b_rstd = tl.load(rstd + o_r, mask=o_r < rows, other=0)
    if weight is not None:
        b_g *= tl.load(weight + o_f, mask=o_f < features, other=0).to(tl.float32)
    if not FROZEN:
        b_normed = tl.load(x + o_r * stride_xr + o_f * stride_xf, mask=mask, other=0).to(tl.float32)
        if CENTRED:
            b_normed = tl.where(mask, b_normed - tl.load(mean + o_r, mask=o_r < rows, other=0), 0.0)
        b_normed *= b_rstd
        # What rstd's own derivative takes away: the component along the normalised vector.
        b_g -= b_normed * (tl.sum(b_g * b_normed, axis=1, keep_dims=True) / features)
    if CENTRED:
        b_g -= tl.sum(b_g, axis=1, keep_dims=True) / features
    b_g *= b_rstd
    if g_residual is not None:
        b_g += tl.load(g_residual + o_r * stride_sr + o_f * stride_sf, mask=mask, other=0).to(tl.float32)
    tl.store(g_in + o_r * stride_or + o_f * stride_of, b_g.to(g_in.dtype.element_ty), mask=mask)


def rms_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``weight * (x * rstd).to(dtype)``, of ``x + residual`` if that is given.

    Args:
        x, residual: (..., D), one dtype, any strides, D <= `MAX_FEATURES`. weight: (D,).
        dtype: that of ``x`` by default; another one has to be that of ``weight`` too.

    Returns:
        (y, rstd, total): y (..., D); rstd (...) float32; total, ``x + residual``, or None without ``residual``.
    """
    y, _, rstd, total = _forward(x, weight, None, eps, residual, dtype or x.dtype, centred=False)
    return y, rstd, total


def layer_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """LayerNorm of ``x``, or of ``x + residual``, over the last dimension.

    Args:
        x, residual: (..., D), one dtype, any strides, D <= `MAX_FEATURES`. weight, bias: (D,) or None.

    Returns:
        (y, mean, rstd, total): y (..., D); mean and rstd (...) float32; total, ``x + residual``, or None.
    """
    return _forward(x, weight, bias, eps, residual, x.dtype, centred=True)


def rms_norm_backward(
    g: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    x: Tensor | None = None,
    *,
    frozen: bool = True,
    g_residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Relevance gradient of the norm's input, with ``rstd`` held constant or, where not ``frozen``, plainly.

    Args:
        g: (..., D), any strides. weight, rstd: as the forward had and gave them.
        x: the norm's input, the sum if a residual was added; needed where not ``frozen``.
        g_residual: (..., D), what reaches that sum by the residual branch: it is added.
        dtype: of the result, by default that of ``g``.

    Returns:
        (..., D).
    """
    return _backward(g, weight, None, rstd, x, frozen, False, g_residual, dtype)


def layer_norm_backward(
    g: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    x: Tensor | None = None,
    *,
    frozen: bool = True,
    g_residual: Tensor | None = None,
) -> Tensor:
    """As `rms_norm_backward`; ``mean``, which the forward gave, is needed where not ``frozen``."""
    return _backward(g, weight, mean, rstd, x, frozen, True, g_residual, None)


def _forward(x, weight, bias, eps, residual, dtype, *, centred):
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"x and residual must have one dtype, not {x.dtype} and {residual.dtype}")
    if dtype != x.dtype and (weight is None or weight.dtype != dtype):
        raise TypeError(f"rows of {x.dtype} are normalised to {dtype} with a weight of that dtype only")
    y = x.new_empty(x.shape, dtype=dtype if weight is None else torch.promote_types(dtype, weight.dtype))
    total = None if residual is None else x.new_empty(x.shape)
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    mean = torch.empty_like(rstd) if centred else None
    matrices = [None if m is None else as_rows(m) for m in (x, residual, y, total)]
    rows_x, rows_residual, rows_y, rows_total = matrices
    weight, bias = (None if v is None else v.contiguous() for v in (weight, bias))
    arguments = (rows_x, rows_residual, weight, bias, rows_y, rows_total, mean, rstd, float(eps))
    flags = {"NARROWED": dtype != x.dtype}
    _launch(norm_forward_kernel, rows_x.shape, *arguments, *rows_x.shape, *strides(*matrices), **flags)
    return y, mean, rstd, total


def _backward(g, weight, mean, rstd, x, frozen, centred, g_residual, dtype):
    if not frozen and (x is None or (centred and mean is None)):
        raise ValueError(f"{'x' if x is None else 'mean'} is needed where the statistics are not frozen")
    g_in = g.new_empty(g.shape, dtype=dtype or g.dtype)
    x, mean = (None, None) if frozen else (x, mean)  # they would be read for nothing
    matrices = [None if m is None else as_rows(m) for m in (g, x, g_residual, g_in)]
    rows_g, rows_x, rows_residual, rows_in = matrices
    weight, mean, rstd = (None if v is None else v.contiguous() for v in (weight, mean, rstd))
    arguments = (rows_g, rows_x, weight, mean, rstd, rows_residual, rows_in)
    flags = {"FROZEN": frozen, "CENTRED": centred}
    _launch(norm_backward_kernel, rows_g.shape, *arguments, *rows_g.shape, *strides(*matrices), **flags)
    return g_in


def _launch(kernel, shape, *arguments, **flags):
    """One program holds 1024 elements of short rows (heads, say), otherwise one row, 8 to 32 elements a thread."""
    rows, features = shape
    if features > MAX_FEATURES:
        raise ValueError(f"the norm kernels take up to {MAX_FEATURES} features, not {features}")
    block_f = triton.next_power_of_2(features)
    block_r = max(1, 1024 // block_f)
    num_warps = 32 if block_f > 16384 else min(max(block_r * block_f // 512, 4), 16)
    tiles = {"BLOCK_R": block_r, "BLOCK_F": block_f}
    launch(kernel, triton.cdiv(rows, block_r), *arguments, num_warps=num_warps, **tiles, **flags)


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    calls = {}
    # Every tile and every dtype with the most that a norm is asked for, and one tile with everything less.
    sizes = [(torch.bfloat16, d) for d in (64, 128, 1024, 2048, 4095, 4096, 8192, 16384, MAX_FEATURES)]
    for dtype, features in [*sizes, *((d, 4096) for d in DTYPES if d != torch.bfloat16)]:
        x = torch.empty(4097, features, dtype=dtype, device="meta")
        w, r = x[0], torch.empty(4097, dtype=torch.float32, device="meta")
        h = torch.empty_like(x, dtype=torch.float32)
        most = {"frozen": False, "g_residual": x}
        name = f"{dtype}-{features}".replace("torch.", "")
        calls |= {
            f"layer_norm_forward-{name}-most": lambda x=x, w=w: layer_norm_forward(x, w, w, 1e-6, x),
            f"layer_norm_backward-{name}-most": lambda x=x, w=w, r=r, o=most: layer_norm_backward(x, w, r, r, x, **o),
            f"layer_norm_backward-{name}-residual": (
                lambda x=x, w=w, r=r: layer_norm_backward(x, w, None, r, g_residual=x)
            ),
        }
        if dtype == torch.bfloat16 and features == 4096:
            wide = {"g_residual": h, "dtype": torch.float32}
            calls |= {
                f"rms_norm_forward-{name}": lambda x=x, w=w: rms_norm_forward(x, w, 1e-6),
                f"rms_norm_forward-{name}-narrowed": lambda h=h, w=w: rms_norm_forward(h, w, 1e-6, dtype=w.dtype),
                f"rms_norm_backward-{name}-widened": (
                    lambda x=x, w=w, r=r: rms_norm_backward(x, w, r, dtype=torch.float32)
                ),
                f"rms_norm_forward-{name}-residual": lambda x=x, w=w: rms_norm_forward(x, w, 1e-6, x),
                f"layer_norm_forward-{name}": lambda x=x: layer_norm_forward(x, None, None, 1e-6),
                f"rms_norm_backward-{name}": lambda x=x, w=w, r=r: rms_norm_backward(x, w, r),
                f"rms_norm_backward-{name}-residual": lambda x=x, w=w, r=r, o=wide: rms_norm_backward(x, w, r, **o),
                f"rms_norm_backward-{name}-float32": lambda h=h, w=w, r=r: rms_norm_backward(h, w, r),
                f"rms_norm_backward-{name}-most": lambda x=x, w=w, r=r, o=most: rms_norm_backward(x, w, r, x, **o),
                f"layer_norm_backward-{name}": lambda x=x, w=w, r=r: layer_norm_backward(x, w, None, r),
            }
    return record(calls, on)
