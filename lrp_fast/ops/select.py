"""Exact choice of the strongest edges from tiles of a matrix that is never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import fused, kernels

# Positions of the rows (R,), their columns, the entries (R, S); these may be overwritten when the next tile comes.
Tile = tuple[Tensor, slice, Tensor]


class _Bits(NamedTuple):
    """Of |x| as an integer, which orders as |x| does."""

    integer: torch.dtype
    number: int
    low: int  # as many of the lowest bits a bin passes over
    mantissa: int


_BITS = {torch.float32: _Bits(torch.int32, 31, 16, 23), torch.float64: _Bits(torch.int64, 63, 45, 52)}

# A mantissa is summed in pieces of so many bits: as float64, 2^26 of them add up exactly.
_PIECE = 27


class Selected(NamedTuple):
    """Edges by row, on the CPU: those of row r are the next ``counts[r]``."""

    counts: Tensor  # (R,) int64
    columns: Tensor  # (E,) int32, ascending within a row
    weights: Tensor  # (E,), never 0
    dropped: Tensor  # (R, 2), the sums of the positive and of the negative entries that were left out


def by_row(tiles: Iterable[Tile], k: int) -> Selected:
    """The ``k`` entries of largest magnitude in each row; of equal ones those further to the left."""
    return joined([_strongest(keys, entries, k) for _, keys, entries in tiles])


def listed(columns: Tensor, weights: Tensor, dropped: Tensor) -> Selected:
    """Of lists that somebody has chosen: columns and weights (R, k), 0 where a row has fewer, and (R, 2)."""
    there = weights != 0
    return Selected(there.sum(-1).cpu(), columns[there].cpu(), weights[there].cpu(), dropped.cpu())


def by_mass(
    tiles: Callable[[Tensor], Iterator[Tile]],
    rows: Tensor,
    share: float,
    own: Tensor | None,
    room: int = 0,
    impl: str = "auto",
) -> Selected:
    """The smallest set of entries of largest magnitude that hold ``share`` of the sum of magnitudes, ties kept.

    Two passes: one fills a histogram over the leading bits of the magnitudes, which orders them as the numbers do; the
    other collects what lies in the bin of the threshold or above it, and the threshold is found among the former. The
    histogram's sums are exact until they become float64, so that their order is of no account.

    The threshold is known only after the last tile: an entry x is left out just if all that is no larger than x holds
    at most 1 - share of the whole, and however little that is so far, enough small entries may come to turn it about.
    So the second pass needs the tiles once more, and those that had room are still there.

    Args:
        tiles: gives the tiles of some of the rows; the same every time where a tile begins with the first of them.
        own: added to the diagonal for the comparison alone.
        room: entries of the first tiles that may stay, 0 where a tile takes the memory of the one before. The others
            are asked for twice.
        impl: who sums, as in `activation`.
    """
    if share == 1:  # all that is not 0, also what a sum of the others would not notice
        found = []
        for position, keys, entries in tiles(rows):
            found.append(_chosen(keys, entries, (_sizes(position, keys, entries, own) > 0) & (entries != 0)))
        return joined(found)
    stayed: list[Tile] = []
    masses = _masses(_holding(tiles(rows), stayed, room), own, impl)
    again = chain(stayed, tiles(rows[sum(len(position) for position, _, _ in stayed) :]))
    above = masses.flip(0).cumsum(0).flip(0)  # what a bin holds with all above it
    goal = share * above[0].item()
    if goal == 0:
        return joined([_chosen(keys, entries, entries.isnan()) for _, keys, entries in again])
    last = int((above >= goal).nonzero()[-1])
    held = (above[last] - masses[last]).item()

    parts, sizes = [], []
    for position, keys, entries in again:
        size = _sizes(position, keys, entries, own)
        bits = _BITS[size.dtype]
        part, found = _collected(keys, entries, size, size.view(bits.integer) >= max(last << bits.low, 1))
        parts.append(part)
        sizes.append(found)
    size = torch.cat(sizes)
    ordered = size[_bins(size) == last].sort(descending=True).values
    reached = held + ordered.double().cumsum(0) >= goal
    # Where rounding leaves the sum short of the goal, the bin is needed whole.
    threshold = ordered[int(reached.int().argmax())] if reached.any() else ordered[-1]
    selected = joined(parts)
    return _without(selected, (size < threshold) | (selected.weights == 0))


def _holding(tiles: Iterable[Tile], stayed: list[Tile], room: int) -> Iterator[Tile]:
    """The tiles as they come; the first of them, no more than ``room`` entries, go to the list as well."""
    for tile in tiles:
        room -= tile[2].numel()
        if room >= 0:
            stayed.append(tile)
        yield tile


def _masses(tiles: Iterable[Tile], own: Tensor | None, impl: str) -> Tensor:
    """(bins,) float64 on the CPU: the sum of the magnitudes in each bin.

    All of a bin have one exponent, so that they are summed as integers, which no order of additions changes.
    """
    sums = None
    for position, keys, entries in tiles:
        size = _sizes(position, keys, entries, own)
        integer, number, low, mantissa = _BITS[size.dtype]
        if sums is None:
            pieces = -(-(mantissa + 1) // _PIECE)
            sums = torch.zeros(pieces, 1 << number - low, dtype=torch.int64, device=size.device)
        if pieces == 1 and fused(size, impl):
            kernels("histogram").add_magnitudes(size, sums[0], low)
            continue
        bits = size.view(integer).flatten()
        whole = bits - ((bits >> mantissa).sub_(1).clamp_(min=0) << mantissa)  # all but denormals begin with a 1
        for i, piece in enumerate(sums):
            part = (whole >> i * _PIECE) & (1 << _PIECE) - 1
            piece += torch.bincount(bits >> low, part.double(), len(piece)).long()
    sums = sums.cpu().double()
    exponent = (torch.arange(sums.shape[1]) >> mantissa - low).clamp(min=1)
    unit = exponent - (1 << number - mantissa - 1) + 1 - mantissa  # a bin's last place is 2 to this
    return sum(torch.ldexp(piece, unit + i * _PIECE) for i, piece in enumerate(sums))


def _sizes(position: Tensor, keys: slice, entries: Tensor, own: Tensor | None) -> Tensor:
    """|entries|, those of the diagonal with ``own`` added."""
    size = entries.abs()
    if own is not None:
        diagonal = torch.arange(len(position), device=entries.device), position - keys.start
        size[diagonal] = (entries[diagonal] + own[position]).abs()
    return size


def _bins(size: Tensor) -> Tensor:
    """Bin numbers of numbers >= 0, in their order."""
    bits = _BITS[size.dtype]
    return size.view(bits.integer) >> bits.low


def _strongest(keys: slice, entries: Tensor, k: int) -> Selected:
    """As `by_row`, for one tile; zeros are never chosen."""
    size = entries.abs()
    if k >= size.shape[1]:
        return _chosen(keys, entries, size > 0)
    values, columns = size.topk(k + 1)
    if (values[:, k] == values[:, k - 1]).logical_and_(values[:, k] > 0).any():  # ties: which of them came is undefined
        chosen, ties = size > values[:, k - 1 : k], size == values[:, k - 1 : k]
        room = k - chosen.sum(-1, keepdim=True)
        chosen |= ties.logical_and_(ties.cumsum(-1) <= room)
        return _chosen(keys, entries, chosen & (size > 0))
    columns = columns[:, :k].sort(-1).values
    weights = entries.gather(1, columns)
    entries, size = entries.scatter(1, columns, 0), size.scatter_(1, columns, 0)
    signed, whole = entries.sum(-1), size.sum(-1)
    dropped = torch.stack([(whole + signed).clamp(min=0), (signed - whole).clamp(max=0)], -1) / 2
    return listed((columns + keys.start).int(), weights, dropped)


def _chosen(keys: slice, entries: Tensor, mask: Tensor) -> Selected:
    return _collected(keys, entries, entries, mask)[0]


def _collected(keys: slice, entries: Tensor, size: Tensor, mask: Tensor) -> tuple[Selected, Tensor]:
    """The entries of a mask, and their sizes; a GPU is waited for once."""
    rest = entries.masked_fill(mask, 0)
    dropped = torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
    index = mask.flatten().nonzero().squeeze(-1)
    columns = (index % entries.shape[1] + keys.start).int()
    weights, size = entries.flatten()[index], size.flatten()[index]
    return Selected(mask.sum(-1).cpu(), columns.cpu(), weights.cpu(), dropped.cpu()), size.cpu()


def joined(parts: list[Selected]) -> Selected:
    """The rows of one after those of another."""
    return Selected(*map(torch.cat, zip(*parts, strict=True)))


def _without(selected: Selected, leave: Tensor) -> Selected:
    """``selected`` less the edges of a mask."""
    rows = torch.repeat_interleave(torch.arange(len(selected.counts)), selected.counts)
    sign = (selected.weights < 0).long()
    dropped = selected.dropped.index_put((rows[leave], sign[leave]), selected.weights[leave], accumulate=True)
    counts = selected.counts - rows[leave].bincount(minlength=len(selected.counts))
    return Selected(counts, selected.columns[~leave], selected.weights[~leave], dropped)
