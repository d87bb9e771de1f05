"""Attention within chunks of tokens: each is an attention by itself, and nothing larger than one is ever looked at.

Chunks have as many tokens each, from a row's first real token on; the last may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


def longest(bounds: Tensor | None, length: int) -> int:
    """Tokens of the longest row."""
    return length if bounds is None else max(int(end - start) for start, end in bounds.tolist())


def pieces(bounds: Tensor | None, length: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """(batch rows, tokens) of each chunk: of all rows at once, or of a padded batch row by row."""
    if bounds is None:
        rows = [(slice(None), 0, length)]
    else:
        rows = [(slice(b, b + 1), start, end) for b, (start, end) in enumerate(bounds.tolist())]
    for row, start, end in rows:
        for first in range(start, end, chunk):
            yield row, slice(first, min(first + chunk, end))


def together(
    compute: Callable[..., tuple], given: tuple[Tensor | None, ...], bounds: Tensor | None, chunk: int
) -> list[Tensor | None]:
    """What ``compute`` makes of the chunks of ``given``, all (B, heads, T, ...) or None, put together; 0 at padding.

    It is given the rows too, and returns tensors (B, heads, tokens, ...), or None in the place of one.
    """
    batch, _, length = given[0].shape[:3]
    whole = None
    for rows, tokens in pieces(bounds, length, chunk):
        parts = compute(rows, *(None if one is None else one[rows, :, tokens] for one in given))
        if whole is None:
            shapes = (None if one is None else (batch, one.shape[1], length, *one.shape[3:]) for one in parts)
            whole = [None if one is None else one.new_zeros(to) for one, to in zip(parts, shapes, strict=True)]
        for put, part in zip(whole, parts, strict=True):
            if put is not None:
                put[rows, :, tokens] = part
    return whole


def chunks_of(rows: Tensor, length: int, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """The chunks that hold any of the queries ``rows`` (R,), ascending, and which of their own queries these are."""
    for first in sorted(set((rows // chunk).tolist())):
        tokens = slice(first * chunk, min((first + 1) * chunk, length))
        yield tokens, rows[(rows >= tokens.start) & (rows < tokens.stop)] - tokens.start
