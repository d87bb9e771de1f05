"""What both launches take: the gradient behind the stabilisers, and the arguments in the kernels' form."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import arguments
from ..attention.arguments import block_d, flags_of, magnitudes, score_scalars
from ..attention.prepare import prepare as prepare_pass
from ..tiles import Table

_PREPARED = 32  # queries that a program of prepare_kernel looks at


class Pass(NamedTuple):
    """One backward pass through an attention of one prompt, as the edge kernels read it. See `prepare`."""

    query: Tensor  # (1, H, T, D), any strides
    key: Tensor
    value: Tensor
    u: Tensor  # (1, H, T, D), or two of them
    lse: Tensor  # (1, H, T) float32
    passed: Tensor | None  # (1, H, T) float32 <u, o>; None where weights are constants
    key_part: Tensor | None  # (1, H_kv, S, D)
    value_part: Tensor | None
    value_abs: Tensor | None  # (1, H_kv, S, D) contiguous, |V|; None without gamma
    value_more: Tensor | None  # the same, what the layer's input contributes to |V|; None where that is |V|
    scalars: tuple[int, float, float, float, float]
    flags: dict[str, bool]


def prepare(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    absolute_out: Tensor | None,
    *,
    key_part: Tensor | None,
    value_part: Tensor | None,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    value_share: float,
    score_share: float,
    ratio: bool,
    epsilon: float = 0.0,
    gamma: float = 0.0,
) -> Pass:
    """What both launchers take: the gradient behind the stabilisers, and the arguments in the kernels' form.

    Args:
        g, query, key, value, out, lse, absolute_out: as `attention.backward` takes them, of a batch of 1 without
            bounds.
        key_part, value_part: (1, H_kv, S, D), what the layer's input contributes to keys and values, rounded to their
            dtype; None where that is key and value themselves. key_part counts if ``score_share`` is not 0.
        value_share, score_share: not 0; of the values, and of the keys.
    """
    scored, gammaed, lse = score_share != 0, gamma != 0, lse.contiguous()
    u, passed, _, _ = prepare_pass(
        g, query, key.shape[2], out, absolute_out, None, epsilon=epsilon, gamma=gamma, rows=_PREPARED, passed=scored
    )  # fmt: skip
    u = g if u is None else u.flatten(0, 1)
    key_part = None if key_part is None or not scored else key_part.to(key.dtype)
    value_part = None if value_part is None else value_part.to(value.dtype)
    scalars = (
        *score_scalars(key, scale, window, softcap), float(score_share / value_share * scale), float(value_share)
    )  # fmt: skip
    flags = flags_of(key, causal, window, softcap, None)
    del flags["BOUNDS"]
    flags |= {"SCORES": scored, "RATIO": ratio, "GAMMA": gammaed}
    flags |= {"K_PART": key_part is not None, "V_PART": value_part is not None}
    value_abs = magnitudes(value) if gammaed else None
    value_more = None
    if gammaed and value_part is not None:
        value_more = torch.mul(value_part.detach(), value.detach().sign(), out=torch.empty_like(value_abs))
    return Pass(query, key, value, u, lse, passed, key_part, value_part, value_abs, value_more, scalars, flags)


def launch_arguments(given: Pass, table: Table):
    """Tiles; then in the kernels' order tensors, their strides, queries, keys, kv_heads and groups; and constants."""
    query, key, value, key_part, value_part, u = *given[:3], given.key_part, given.value_part, given.u[:1]
    head_dim, flags = query.shape[-1], given.flags
    parts = flags["K_PART"] or flags["V_PART"]
    step = "edges gamma" if flags["GAMMA"] else "edges parts" if parts else "edges"
    tiles = arguments.config(step, query, False, False, table)
    more = given.u[1] if flags["GAMMA"] else None
    tensors = (
        query, u, more, key, value, key_part, value_part, given.value_abs, given.value_more, given.lse, given.passed
    )  # fmt: skip
    steps = [x.stride()[1:] if x is not None else (0, 0, 0) for x in (query, u, key, value, key_part, value_part)]
    groups = query.shape[1] // key.shape[1]
    sizes = (query.shape[2], key.shape[2], key.shape[1], groups)
    forms = flags | {"GROUPED": groups > 1, "HEAD_DIM": head_dim, "BLOCK_D": block_d(head_dim)}
    return tiles, tensors, [one for three in steps for one in three], sizes, forms
