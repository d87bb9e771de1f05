"""Linear maps under the epsilon and gamma rules, as two pairs of GEMMs that share their loaded tiles.

With a = |x||W|^T + |b| the signed gamma rule needs z, a and one number an output,

    t = z / ((1 + gamma/2)|z| + (gamma/2) a + epsilon)          (0 where the denominator is 0),

whose size is the factor s / g and whose sign is that of z. Its backward is

    g_in = (1 + gamma/2) (g |t|) W + sign(x) * ((gamma/2) (g t) |W|).

|W| and |x| are formed from the tiles already loaded: no copy of the weights exists.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import DTYPES, Case, as_rows, capability, launch, pointwise, record, strides, tile
from .tiles import TABLE, Table, find


class Tiles(NamedTuple):
    """A program makes BLOCK_M x BLOCK_N outputs, BLOCK_K terms at a time.

    There are two float32 accumulators, and 128 x 128 of them are 128 registers a thread of 8 warps: that suits tensor
    cores that read W from shared memory. Where they take it from registers (before capability 9, and on 12) such a tile
    spills; 128 x 64 does as many multiplications for each number read as one product does with 128 x 128. On 9, two
    programs of it at a time hide each other's way through registers in the forward pass, at a spill behind the loop.
    """

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


def row(kernel, rows: int, itemsize: int) -> str:
    """The name in tiles.json of ``kernel`` for so many rows of elements of ``itemsize`` bytes."""
    # Few rows are bound by reading W. Without tensor cores, in full float32, their number matters little.
    few = ", few rows" if rows <= 32 and itemsize == 2 else ""
    return f"{kernel.fn.__name__.removesuffix('_kernel')}, {itemsize} bytes{few}"


@triton.jit
def grouped(i_p, n_m, n_n, GROUP: tl.constexpr):
    """Program -> (row block, column block), GROUP row blocks at a time, so that what is read stays in L2."""
    i_g = i_p // (GROUP * n_n)
    size = tl.minimum(n_m - i_g * GROUP, GROUP)
    i_l = i_p % (GROUP * n_n)
    return i_g * GROUP + i_l % size, i_l // size


@triton.jit
def with_size(p, mask):
    """A tile of numbers, and their absolute values.

    Of 2 bytes as integers, so that both pass through registers. A tile that one product took as it came, and another
    by way of registers, raced on sm_90 with Triton below 3.9 (its issue 11047): one warpgroup fetched the next tile
    over what the other still multiplied with; with 3.6 a fence was missing, too.
    """
    if p.dtype.element_ty.primitive_bitwidth == 16:
        b_bits = tl.load(p.to(tl.pointer_type(tl.int16), bitcast=True), mask=mask, other=0)
        b = b_bits.to(p.dtype.element_ty, bitcast=True)
        b_size = (b_bits & 0x7FFF).to(p.dtype.element_ty, bitcast=True)
    else:
        b = tl.load(p, mask=mask, other=0)
        b_size = tl.abs(b)
    return b, b_size


@triton.jit
def gamma_forward_kernel(
    x, weight, bias, z, t, epsilon, gamma, rows, outs, ins,
    stride_xm, stride_xk, stride_wn, stride_wk, stride_zm, stride_zn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    i_m, i_n = grouped(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outs, BLOCK_N), GROUP)
    o_m = i_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K).to(tl.int64)
    p_x = x + o_m[:, None] * stride_xm + o_k[None, :] * stride_xk
    p_w = weight + o_k[:, None] * stride_wk + o_n[None, :] * stride_wn
    m_m = o_m[:, None] < rows
    m_n = o_n[None, :] < outs

    b_z = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    b_a = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i_k in range(0, tl.cdiv(ins, BLOCK_K)):
        left = ins - i_k * BLOCK_K
        b_x, b_x_size = with_size(p_x, m_m & (o_k[None, :] < left))  # [BLOCK_M, BLOCK_K]
        b_w, b_w_size = with_size(p_w, m_n & (o_k[:, None] < left))  # [BLOCK_K, BLOCK_N]
        b_z = tl.dot(b_x, b_w, b_z, input_precision="ieee")
        b_a = tl.dot(b_x_size, b_w_size, b_a, input_precision="ieee")
        p_x += BLOCK_K * stride_xk
        p_w += BLOCK_K * stride_wk

    if bias is not None:
        b_b = tl.load(bias + o_n, mask=o_n < outs, other=0).to(tl.float32)[None, :]
        b_z += b_b
        b_a += tl.abs(b_b)
    b_d = (1 + gamma / 2) * tl.abs(b_z) + gamma / 2 * b_a + epsilon
    b_t = tl.where(b_d == 0, 0.0, b_z / tl.where(b_d == 0, 1.0, b_d))
    o_z = o_m[:, None] * stride_zm + o_n[None, :] * stride_zn
    tl.store(z + o_z, b_z.to(z.dtype.element_ty), mask=m_m & m_n)
    tl.store(t + o_z, b_t.to(t.dtype.element_ty), mask=m_m & m_n)


@triton.jit
def gamma_backward_kernel(
    g, x, t, weight, g_in, gamma, rows, outs, ins,
    stride_gm, stride_gk, stride_xm, stride_xn, stride_tm, stride_tk, stride_wk, stride_wn, stride_om, stride_on,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # M runs over rows, N over the inputs, K over the outputs.
    i_m, i_n = grouped(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(ins, BLOCK_N), GROUP)
    o_m = i_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K).to(tl.int64)
    p_g = g + o_m[:, None] * stride_gm + o_k[None, :] * stride_gk
    p_t = t + o_m[:, None] * stride_tm + o_k[None, :] * stride_tk
    p_w = weight + o_k[:, None] * stride_wk + o_n[None, :] * stride_wn
    m_m = o_m[:, None] < rows
    m_n = o_n[None, :] < ins

    b_o = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    b_s = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i_k in range(0, tl.cdiv(outs, BLOCK_K)):
        left = outs - i_k * BLOCK_K
        m_a = m_m & (o_k[None, :] < left)
        b_g = tl.load(p_g, mask=m_a, other=0).to(tl.float32)  # [BLOCK_M, BLOCK_K]
        b_t = tl.load(p_t, mask=m_a, other=0).to(tl.float32)  # [BLOCK_M, BLOCK_K]
        b_w, b_w_size = with_size(p_w, m_n & (o_k[:, None] < left))  # [BLOCK_K, BLOCK_N]
        b_o = tl.dot((b_g * tl.abs(b_t)).to(b_w.dtype), b_w, b_o, input_precision="ieee")
        b_s = tl.dot((b_g * b_t).to(b_w.dtype), b_w_size, b_s, input_precision="ieee")
        p_g += BLOCK_K * stride_gk
        p_t += BLOCK_K * stride_tk
        p_w += BLOCK_K * stride_wk

    b_x = tl.load(x + o_m[:, None] * stride_xm + o_n[None, :] * stride_xn, mask=m_m & m_n, other=0)
    b_sign = tl.where(b_x > 0, 1.0, tl.where(b_x < 0, -1.0, 0.0))
    b_o = (1 + gamma / 2) * b_o + b_sign * (gamma / 2 * b_s)
    tl.store(g_in + o_m[:, None] * stride_om + o_n[None, :] * stride_on, b_o.to(g_in.dtype.element_ty), mask=m_m & m_n)


@triton.jit
def epsilon_factor_kernel(
    g, z, out, epsilon, rows, features, stride_gr, stride_gf, stride_zr, stride_zf, stride_or, stride_of,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, mask = tile(rows, features, BLOCK_R, BLOCK_F)
    b_g = tl.load(g + o_r * stride_gr + o_f * stride_gf, mask=mask, other=0).to(tl.float32)
    b_z = tl.abs(tl.load(z + o_r * stride_zr + o_f * stride_zf, mask=mask, other=0).to(tl.float32))
    b_d = b_z + epsilon
    b_o = tl.where(b_d == 0, 0.0, b_g * b_z / tl.where(b_d == 0, 1.0, b_d))
    tl.store(out + o_r * stride_or + o_f * stride_of, b_o.to(out.dtype.element_ty), mask=mask)


def gamma_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, gamma: float, *, table: Table = TABLE
) -> tuple[Tensor, Tensor]:
    """``z = x @ weight.T + bias`` and the signed factor t that `gamma_backward` wants.

    Args:
        x: (..., in), any strides. weight: (out, in), any strides, of x's dtype. bias: (out,) or None.
        epsilon, gamma: of the rule, >= 0.
        table: of tile configurations, see `tiles`.

    Returns:
        (z, t), each (..., out), contiguous, of x's dtype.
    """
    if weight.dtype != x.dtype:
        raise TypeError(f"x and weight must have one dtype, not {x.dtype} and {weight.dtype}")
    outs, ins = weight.shape
    z = x.new_empty(*x.shape[:-1], outs)
    t = torch.empty_like(z)
    rows_x, rows_z = as_rows(x), as_rows(z)
    sizes = (rows_x.shape[0], outs, ins)
    bias = None if bias is None else bias.contiguous()
    arguments = (rows_x, weight, bias, z, t, float(epsilon), float(gamma), *sizes, *strides(rows_x, weight, rows_z))
    _launch(gamma_forward_kernel, sizes[0], outs, weight, arguments, table)
    return z, t


def gamma_backward(g: Tensor, x: Tensor, t: Tensor, weight: Tensor, gamma: float, *, table: Table = TABLE) -> Tensor:
    """Relevance gradient of ``x``, (..., in), of g's dtype, from that of the output, ``g`` (..., out).

    Args:
        x, weight, gamma, table: as `gamma_forward` had them. t: what it gave. Any strides.
    """
    outs, ins = weight.shape
    g_in = g.new_empty(*g.shape[:-1], ins)
    matrices = [as_rows(m) for m in (g, x, t)]
    rows = matrices[0].shape[0]
    sizes = (rows, outs, ins)
    arguments = (*matrices, weight, g_in, float(gamma), *sizes, *strides(*matrices, weight, as_rows(g_in)))
    _launch(gamma_backward_kernel, rows, ins, weight, arguments, table)
    return g_in


def epsilon_factor(g: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """``g |z| / (|z| + epsilon)``, (..., D) of any strides, of g's dtype; 0 where z and epsilon are 0."""
    out = g.new_empty(g.shape)
    pointwise(epsilon_factor_kernel, [as_rows(t) for t in (g, z, out)], float(epsilon))
    return out


def _launch(kernel, rows, columns, weight, arguments, table):
    m, n, k, num_warps, num_stages = find(table, row(kernel, rows, weight.element_size()), capability(weight))
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}
    programs = triton.cdiv(rows, m) * triton.cdiv(columns, n)
    launch(kernel, programs, *arguments, num_warps=num_warps, num_stages=num_stages, **sizes)


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    calls = {}
    for dtype in DTYPES:
        weight = torch.empty(14336, 4096, dtype=dtype, device="meta")
        for rows in (4097, 5):
            x, z = torch.empty(rows, 4096, dtype=dtype, device="meta"), weight.new_empty(rows, 14336)
            name = f"{dtype}-{rows}".replace("torch.", "")
            calls |= {
                f"gamma_forward-{name}": lambda x=x, w=weight: gamma_forward(x, w, w[:, 0].contiguous(), 0.1, 0.1),
                f"gamma_backward-{name}": lambda x=x, z=z, w=weight: gamma_backward(z, x, z, w, 0.1),
            }
        calls[f"gamma_forward-{name}-transposed"] = lambda x=z, w=weight.T: gamma_forward(x, w, None, 0.1, 0.1)
        calls[f"epsilon_factor-{name}"] = lambda z=z: epsilon_factor(z, z, 0.1)
    # A vocabulary that 16 does not divide.
    x, weight = (torch.empty(n, 4096, dtype=DTYPES[1], device="meta") for n in (4097, 50257))
    z = x.new_empty(4097, 50257)
    calls |= {
        "gamma_forward-bfloat16-odd": lambda: gamma_forward(x, weight, None, 0.1, 0.1),
        "gamma_backward-bfloat16-odd": lambda: gamma_backward(z, x, z, weight, 0.1),
        "epsilon_factor-bfloat16-odd": lambda: epsilon_factor(z, z, 0.1),
    }
    return record(calls, on)
