"""What both launches take: the gradient behind the stabilisers, and the arguments in the kernels' form."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..attention import arguments
from ..attention.arguments import Tiles, block_d, checked, flags_of, magnitudes, score_scalars
from ..attention.prepare import compact
from ..attention.prepare import prepare as prepare_pass
from ..tiles import TABLE, Table

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
    kept: Tensor | None = None  # (H, ceil(T / m), ceil(S / n)) uint8, not 0 where a tile is kept; None: all are
    counted: Tensor | None = (
        None  # (H, ceil(T / m) + 1, ceil(S / n) + 1) int32, how many are kept before each, both ways
    )
    unit: tuple[int, int] = (0, 0)  # m, n


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
    kept: Tensor | None = None,
    table: Table = TABLE,
) -> Pass:
    """What both launchers take: the gradient behind the stabilisers, and the arguments in the kernels' form.

    Args:
        g, query, key, value, out, lse, absolute_out: as `attention.backward` takes them, of a batch of 1 without
            bounds.
        key_part, value_part: (1, H_kv, S, D), what the layer's input contributes to keys and values, rounded to their
            dtype; None where that is key and value themselves. key_part counts if ``score_share`` is not 0.
        value_share, score_share: not 0; of the values, and of the keys.
        kept, table: as `attention.backward` takes them. A head gives nothing to an edge in a tile that it does not
            keep, so that edges still sum to what the backward pass handed to keys and values.
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
    found = Pass(query, key, value, u, lse, passed, key_part, value_part, value_abs, value_more, scalars, flags)
    if kept is None:
        return found
    unit = arguments.unit(query, gammaed, softcap is not None, table)
    (kept,) = checked(kept, query, key, unit)
    counted = torch.nn.functional.pad(kept.int(), (1, 0, 1, 0)).cumsum_(1).cumsum_(2)
    return found._replace(kept=kept.contiguous().view(torch.uint8), counted=counted, unit=unit)


def visits(
    given: Pass, tiles: Tiles, rows: Tensor, keys: slice, anywhere: bool = False
) -> tuple[Tensor | None, dict[str, int]]:
    """Where not all tiles are kept: (R / tiles.queries, S / tiles.keys, H) bool, both rounded up, whether a head keeps
    any tile between the first and last of so many ``rows`` and of so many ``keys``; and the kernels' constants.

    Args:
        anywhere: the first of the keys need not be a multiple of tiles.keys.
    """
    m, n = given.unit
    if given.kept is None:
        return None, {"UNIT_M": 0, "UNIT_N": 0, "SPAN": 0}
    padded = torch.arange(triton.cdiv(len(rows), tiles.queries) * tiles.queries, device=rows.device)
    of_rows = rows[padded.clamp_(max=len(rows) - 1)].view(-1, tiles.queries) // m
    starts = torch.arange(keys.start, keys.stop, tiles.keys, device=rows.device)
    left, right = starts // n, ((starts + tiles.keys).clamp(max=keys.stop) - 1) // n + 1
    above, below = (given.counted[:, at] for at in (of_rows.amin(1), of_rows.amax(1) + 1))
    found = below[..., right] - below[..., left] - above[..., right] + above[..., left]
    return (found != 0).permute(1, 2, 0), {"UNIT_M": m, "UNIT_N": n, "SPAN": max(1, tiles.keys // n) + anywhere}


def head_lists(visited: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The heads of each of a kernel's tiles, as `compact` lists them."""
    return (None, None) if visited is None else compact(visited.flatten(0, 1))


def launch_arguments(given: Pass, table: Table):
    """Tiles; then in the kernels' order tensors, their strides, queries, keys, kv_heads and groups; and constants."""
    query, key, value, key_part, value_part, u = *given[:3], given.key_part, given.value_part, given.u[:1]
    head_dim, flags = query.shape[-1], given.flags
    parts = flags["K_PART"] or flags["V_PART"]
    step = "edges gamma" if flags["GAMMA"] else "edges parts" if parts else "edges"
    tiles = arguments.config(step, query, False, False, table)
    more = given.u[1] if flags["GAMMA"] else None
    tensors = (
        query, u, more, key, value, key_part, value_part, given.value_abs, given.value_more, given.lse, given.passed,
        given.kept,
    )  # fmt: skip
    steps = [x.stride()[1:] if x is not None else (0, 0, 0) for x in (query, u, key, value, key_part, value_part)]
    groups = query.shape[1] // key.shape[1]
    if groups == 1:  # keys and values come in the same loop as queries then, and a third stage of all has no room
        tiles = tiles._replace(num_stages=min(tiles.num_stages, 2))
    sizes = (query.shape[2], key.shape[2], key.shape[1], groups)
    forms = flags | {"GROUPED": groups > 1, "HEAD_DIM": head_dim, "BLOCK_D": block_d(head_dim)}
    return tiles, tensors, [one for three in steps for one in three], sizes, forms
