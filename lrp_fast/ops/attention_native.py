"""Attention's backward pass by the C++ core, on x86 CPUs with AVX2 or AVX-512, under all rules but γ, in float32; and
the masses that a bounded pass chooses by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _native
from .attention_tiled import ahead

TILE = 64  # queries, and keys, of a tile
FEW = TILE  # keys: of a single tile it computes the empty part too, and PyTorch's flash kernel is quicker (measured)
_THREADS = 16  # among more, some have nothing to do: there are 16 units of work at a time, or a few more


def serves(query: Tensor, value: Tensor, reach, dtype: torch.dtype | None = None) -> bool:
    """Whether it computes this attention: float32 on a CPU, heads of a multiple of 16 features, no soft-cap, no keys
    that hang on the prompt, and few threads.

    Args:
        dtype: of what it will be given, where that is not the queries'.
    """
    plain = reach.softcap is None and reach.is_plain and value.shape[3] == query.shape[3]
    ours = query.device.type == "cpu" and (dtype or query.dtype) == torch.float32
    return plain and ours and takes(query.shape[3])


def takes(features: int) -> bool:
    """Whether it does, of heads of so many features: on this processor, and by these threads."""
    threads = torch.get_num_threads()
    by_these = threads == 1 or (_native.has_openmp and threads <= _THREADS)
    return by_these and _native.attention_backward_serves(features)


def backward(g, query, key, value, out, lse, reach, *, scores: bool) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of query, key (None unless ``scores``) and value, as `attention_tiled.backward` returns them."""
    grads = gradients(query, key, value, scores)
    for b in range(len(g)):
        of = [None if t is None else t[b] for t in (g, query, key, value, out, lse, *grads)]
        add(*of[:6], reach, *of[6:])
    return tuple(grads)


def add(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    reach,
    d_query: Tensor | None,
    d_key: Tensor | None,
    d_value: Tensor,
    *,
    norm: Tensor | None = None,
    tiles: Tensor | None = None,
) -> float:
    """Add a prompt's gradients to ``d_query`` (H, T, D), ``d_key`` and ``d_value`` (H_kv, S, D), those of `gradients`.

    Args:
        norm: (H, T) |g|, for the mass.
        tiles: (H, tiles of queries, tiles of keys) bool, of those to be visited; None: all.

    Returns:
        The mass of what was visited, where there is a ``norm``.
    """
    keys = key.shape[1]
    g, query, key, value, out = map(dense, (g, query, key, value, out))
    lse, norm = (None if t is None else t.contiguous().numpy() for t in (lse, norm))
    if tiles is not None:
        tiles = tiles.contiguous().view(torch.uint8).numpy()
    grads = (None if t is None else t.numpy() for t in (d_query, d_key, d_value))
    size = floats(len(query), len(key), query.shape[1], keys, query.shape[2], d_query is not None)
    work, on = torch.empty(size, dtype=torch.float32, device="cpu"), torch.get_num_threads()
    given = (g, query, key, value, out, lse, norm, tiles, *bounds(reach, keys))
    return _native.attention_backward(*given, *grads, work.numpy(), on)


def masses(query: Tensor, key: Tensor, lse: Tensor, drawn: Tensor, reach) -> Tensor:
    """(H, tiles of queries, tiles of keys), the sums of the weights of the queries ``drawn`` (H, tiles, 8) int64."""
    heads, keys, features = key.shape
    found = torch.empty(*drawn.shape[:2], -(-keys // TILE), dtype=torch.float32, device="cpu")
    size = _native.attention_masses_floats(heads, keys, features)
    work = torch.empty(size, dtype=torch.float32, device="cpu").numpy()
    given = (dense(query), dense(key), lse.contiguous().numpy(), drawn.contiguous().numpy(), *bounds(reach, keys))
    _native.attention_masses(*given, found.numpy(), work, torch.get_num_threads())
    return found


def bounds(reach, keys: int) -> tuple[float, int, int]:
    """The scale, and how far behind and ahead a query reads, as the core takes them."""
    return reach.scale, keys if reach.window is None else reach.window, ahead(reach, keys)


def floats(heads: int, key_heads: int, queries: int, keys: int, features: int, scores: bool) -> int:
    """How many it takes to work in, for one prompt."""
    return _native.attention_backward_floats(heads, key_heads, queries, keys, features, scores)


def gradients(query: Tensor, key: Tensor, value: Tensor, scores: bool) -> list[Tensor | None]:
    """For `add`: zeros that are like them, in float32, None of query and key unless ``scores``. (..., H, T, D) lie as
    (..., T, H, D) do: so the linear maps below take them."""

    def zeros(like: Tensor) -> Tensor:
        shape = like.transpose(-3, -2).shape
        return torch.zeros(shape, dtype=torch.float32, device=like.device).transpose(-3, -2)

    return [zeros(query) if scores else None, zeros(key) if scores else None, zeros(value)]


def dense(x: Tensor) -> np.ndarray:
    """With dense features, as the core takes it; most lie so already."""
    x = x.detach()
    return (x if x.stride(-1) == 1 else x.contiguous()).numpy()
