"""How attention is launched: its tiles, and its arguments in the kernels' form."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..common import capability
from ..tiles import TABLE, Table, find

_LOG2_E = 1.4426950408889634


class Tiles(NamedTuple):
    """Queries and keys in a tile, and how the program that owns it is compiled."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def config(step: str, query: Tensor, gamma: bool, capped: bool, table: Table = TABLE) -> Tiles:
    """Tiles of ``step`` ("forward", "dkv", "dq", "masses") on the device of ``query``.

    Args:
        gamma: with |V| beside V, which takes a second set of sums.
        capped: with a soft-cap, whose factor takes registers too; only some steps have rows of their own for it.

    Raises:
        ValueError: for a head_dim above 256, or an element of neither 2 nor 4 bytes.
    """
    head_dim, itemsize = query.shape[-1], query.element_size()
    name = row(step + " gamma" * gamma, head_dim, itemsize)
    if capped and not gamma and row(step + " capped", head_dim, itemsize) in table:
        name = row(step + " capped", head_dim, itemsize)
    if name not in table:
        raise ValueError(f"no attention kernel for head_dim {head_dim} with elements of {itemsize} bytes")
    return Tiles(*find(table, name, capability(query)))


def unit(query: Tensor, gamma: bool, capped: bool, table: Table = TABLE) -> tuple[int, int]:
    """Queries and keys of a tile that `backward` may leave out: whole tiles of both its kernels, so that both leave out
    the very same. Powers of two, as all tiles are: the larger is a multiple of the smaller. Arguments as `config`."""
    tiles = [config(step, query, gamma, capped, table) for step in ("dkv", "dq")]
    return max(tile.queries for tile in tiles), max(tile.keys for tile in tiles)


def checked(kept: Tensor, query: Tensor, key: Tensor, unit: tuple[int, int]) -> Tensor:
    """``kept``, if it is bool and has the shape that `unit` asks for."""
    tiles = (triton.cdiv(x.shape[2], each) for x, each in zip((query, key), unit, strict=True))
    if kept.shape != (expected := (*query.shape[:2], *tiles)) or kept.dtype != torch.bool:
        raise ValueError(f"kept must be bool, {expected} here, see `unit`: not {kept.dtype}, {tuple(kept.shape)}")
    return kept


def row(step: str, head_dim: int, itemsize: int) -> str:
    """The table's name for ``step``, with " gamma" or " capped" after it, and elements of ``itemsize`` bytes."""
    return f"{step}, head_dim {block_d(head_dim)}, {itemsize} bytes"


def block_d(head_dim: int) -> int:
    """Columns of a tile: tensor cores take powers of two, and 64 of them at least are no slower than fewer."""
    return max(64, triton.next_power_of_2(head_dim))


def score_scalars(key, scale, window, softcap):
    """window, qk_scale, cap_scale: what the kernels make scores of."""
    return min(window or 0, key.shape[2]), scale * _LOG2_E, scale / softcap if softcap else 0.0


def flags_of(key, causal, window, softcap, bounds):
    # A window as long as the context hides nothing that comes before a query.
    hides = window is not None and window < key.shape[2]
    return {"CAUSAL": causal, "WINDOW": hides, "SOFTCAP": softcap is not None, "BOUNDS": bounds is not None}


def plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def magnitudes(value: Tensor) -> Tensor:
    """|V|, contiguous, which meets the weights in products of its own.

    It is no more than V, and formed from the tiles of V it would have to go through registers into shared memory for
    every one of them. One tile that feeds two products, once through an elementwise operation, is also what Triton
    below 3.9 allots too few buffers (its issue 11047): with 8 warps on sm_90 the next values are fetched over those
    that are still multiplied with.
    """
    return torch.abs(value.detach(), out=torch.empty(value.shape, dtype=value.dtype, device=value.device))


def launched(tiles: Tiles):
    return {
        "BLOCK_M": tiles.queries, "BLOCK_N": tiles.keys, "num_warps": tiles.num_warps, "num_stages": tiles.num_stages
    }  # fmt: skip
