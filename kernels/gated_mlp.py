"""The product in a gated MLP, act(gate) * up: forward, and both relevance gradients in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import KINDS, derivative, ratio
from .common import DTYPES, Case, as_rows, pointwise, record, tile


@triton.jit
def gated_mlp_forward_kernel(
    gate, up, y, rows, features, stride_ar, stride_af, stride_ur, stride_uf, stride_yr, stride_yf,
    KIND: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, mask = tile(rows, features, BLOCK_R, BLOCK_F)
    b_a = tl.load(gate + o_r * stride_ar + o_f * stride_af, mask=mask, other=0).to(tl.float32)
    b_u = tl.load(up + o_r * stride_ur + o_f * stride_uf, mask=mask, other=0).to(tl.float32)
    # act(gate) is rounded to the working dtype before the product, as in the model that this replaces.
    b_f = (b_a * ratio(b_a, KIND)).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + o_r * stride_yr + o_f * stride_yf, (b_f * b_u).to(y.dtype.element_ty), mask=mask)


@triton.jit
def gated_mlp_backward_kernel(
    g, gate, up, g_gate, g_up, rows, features,
    stride_gr, stride_gf, stride_ar, stride_af, stride_ur, stride_uf, stride_dar, stride_daf, stride_dur, stride_duf,
    KIND: tl.constexpr, RATIO: tl.constexpr, GATE_SHARE: tl.constexpr, UP_SHARE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    o_r, o_f, mask = tile(rows, features, BLOCK_R, BLOCK_F)
    b_g = tl.load(g + o_r * stride_gr + o_f * stride_gf, mask=mask, other=0).to(tl.float32)
    b_a = tl.load(gate + o_r * stride_ar + o_f * stride_af, mask=mask, other=0).to(tl.float32)
    b_r = ratio(b_a, KIND)
    if GATE_SHARE != 0:
        b_u = tl.load(up + o_r * stride_ur + o_f * stride_uf, mask=mask, other=0).to(tl.float32)
        b_s = b_r
        if not RATIO:
            b_s = derivative(b_a, b_r, KIND)
        b_da = GATE_SHARE * b_g * b_u * b_s
        tl.store(g_gate + o_r * stride_dar + o_f * stride_daf, b_da.to(g_gate.dtype.element_ty), mask=mask)
    b_du = UP_SHARE * b_g * (b_a * b_r)
    tl.store(g_up + o_r * stride_dur + o_f * stride_duf, b_du.to(g_up.dtype.element_ty), mask=mask)


def gated_mlp_forward(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate) * up, (..., D) of any strides (two halves of one projection, say); ``kind`` is one of `KINDS`."""
    y = gate.new_empty(gate.shape)
    pointwise(gated_mlp_forward_kernel, [as_rows(gate), as_rows(up), as_rows(y)], KIND=kind)
    return y


def gated_mlp_backward(
    g: Tensor,
    gate: Tensor,
    up: Tensor | None,
    kind: str,
    *,
    ratio: bool,
    gate_share: float,
    up_share: float,
) -> tuple[Tensor | None, Tensor]:
    """Relevance gradients of (gate, up) from that of the product, ``g``; all (..., D), of any strides.

    Args:
        up: may be None where ``gate_share`` is 0: it is not read then.
        ratio: the gate's activation passes g f(z)/z, otherwise g f'(z).
        gate_share, up_share: what each factor gets; half each is attnlrp, (0, 1) is cp, (1, 1) the plain gradient.

    Returns:
        (g_gate, g_up), of gate's dtype; g_gate is None where ``gate_share`` is 0.
    """
    g_up = gate.new_empty(gate.shape)
    g_gate = gate.new_empty(gate.shape) if gate_share else None
    matrices = [None if x is None else as_rows(x) for x in (g, gate, up if gate_share else None, g_gate, g_up)]
    shares = {"GATE_SHARE": float(gate_share), "UP_SHARE": float(up_share)}
    pointwise(gated_mlp_backward_kernel, matrices, KIND=kind, RATIO=ratio, **shares)
    return g_gate, g_up


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    calls = {}
    rules = {"attnlrp": (True, 0.5, 0.5), "cp": (True, 0.0, 1.0), "gradient": (False, 1.0, 1.0)}
    sizes = [(kind, dtype, 14336) for kind in KINDS for dtype in (DTYPES if kind == "silu" else DTYPES[1:2])]
    for kind, dtype, features in [*sizes, ("silu", DTYPES[1], 14335)]:
        x = torch.empty(4097, features, dtype=dtype, device="meta")
        name = f"{kind}-{dtype}{'-odd' * (features % 2)}".replace("torch.", "")
        calls[f"gated_mlp_forward-{name}"] = lambda x=x, kind=kind: gated_mlp_forward(x, x, kind)
        for rule, (by_ratio, gate, up) in rules.items():
            calls[f"gated_mlp_backward-{name}-{rule}"] = lambda x=x, kind=kind, r=by_ratio, a=gate, u=up: (
                gated_mlp_backward(x, x, x, kind, ratio=r, gate_share=a, up_share=u)
            )
    return record(calls, on)
