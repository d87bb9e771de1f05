"""Edges of an attention by the C++ core, on x86 CPUs with AVX2 or AVX-512, in float32: see `edges`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _native
from . import attention_native
from .attention import Trace, at_values
from .attention_tiled import reached
from .select import Tile

_EACH = 1 << 20  # edges of a tile: of fewer, threads wait for each other


def serves(trace: Trace) -> bool:
    """Whether it computes the edges of this attention at all: no gamma rule, and as `attention_native` does."""
    tiled = trace.unit is None or trace.unit == (attention_native.TILE,) * 2
    plain = tiled and not trace.rules.attention_gamma
    return plain and attention_native.serves(trace.query, trace.value, trace.reach)


def strongest(
    rows: Tensor, trace: Trace, key_part: Tensor | None, value_part: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `select.by_row` chooses of all edges of those queries, as `select.listed` takes it."""
    k, given = min(k, trace.key.shape[2]), _given(trace, key_part, value_part)
    columns = torch.empty(len(rows), k, dtype=torch.int32, device="cpu")
    weights, dropped = (torch.empty(len(rows), size, dtype=torch.float32, device="cpu") for size in (k, 2))
    given["rows"] = rows.contiguous().numpy()
    _native.attention_edges_strongest(given, *(t.numpy() for t in (columns, weights, dropped)))
    return columns, weights, dropped


def tiles(
    trace: Trace, rows: Tensor, key_part: Tensor | None = None, value_part: Tensor | None = None
) -> Iterator[Tile]:
    """As `edges.edge_tiles`, of more queries at a time."""
    keys, given = trace.key.shape[2], _given(trace, key_part, value_part)
    rows = rows.contiguous()
    position = rows + (keys - trace.query.shape[2])
    each = rows_at_a_time(keys)
    for start in range(0, len(rows), each):
        own, of = rows[start : start + each], position[start : start + each]
        read = reached(int(of[0]), int(of[-1]), keys, trace.reach)
        found = torch.empty(len(own), read.stop - read.start, dtype=torch.float32, device="cpu")
        given["rows"] = own.numpy()
        _native.attention_edges(given, read.start, read.stop, found.numpy())
        given["packed"] = True
        yield of, read, found


def rows_at_a_time(keys: int) -> int:
    """Of `tiles`: a tile of queries at least for each thread."""
    return max(_EACH // keys, attention_native.TILE * torch.get_num_threads())


def floats(key_heads: int, keys: int, features: int, key_part: bool, value_part: bool) -> int:
    """How many it takes to work in."""
    return _native.attention_edges_floats(key_heads, keys, features, key_part, value_part)


def _given(trace: Trace, key_part: Tensor | None, value_part: Tensor | None) -> dict:
    g, out, _ = at_values(trace.g, trace.kept.out, trace.value, None, trace.rules)
    tokens = {"g": g, "out": out, "query": trace.query, "key": trace.key, "value": trace.value}
    tokens |= {"key_part": key_part, "value_part": value_part}
    given = {name: None if t is None else attention_native.dense(t[0]) for name, t in tokens.items()}
    treatment, (heads, keys, features) = trace.rules.treatment, trace.key.shape[1:]
    scale, behind, ahead = attention_native.bounds(trace.reach, keys)
    size = floats(heads, keys, features, key_part is not None, value_part is not None)
    kept = None if trace.tiles is None else trace.tiles[0]
    return given | {
        "lse": trace.kept.lse[0].contiguous().numpy(),
        "tiles": None if kept is None else kept.contiguous().view(torch.uint8).numpy(),
        "scale": scale,
        "behind": behind,
        "ahead": ahead,
        "share": treatment.value,
        "ratio": treatment.score / treatment.value,
        "work": torch.empty(size, dtype=torch.float32, device="cpu").numpy(),
        "threads": torch.get_num_threads(),
    }
