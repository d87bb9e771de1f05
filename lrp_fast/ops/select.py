"""Exact choice of the strongest edges from tiles of a matrix that is never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Tile = tuple[Tensor, slice, Tensor]  # positions of the rows (R,), their columns, the entries (R, S)

# The bits of |x| as an integer, of how many they are, and how many of the lowest a bin passes over.
_KEYS = {torch.float32: (torch.int32, 31, 16), torch.float64: (torch.int64, 63, 45)}


class Selected(NamedTuple):
    """Edges by row, on the CPU: those of row r are the next ``counts[r]``."""

    counts: Tensor  # (R,) int64
    columns: Tensor  # (E,) int32, ascending within a row
    weights: Tensor  # (E,), never 0
    dropped: Tensor  # (R, 2), the sums of the positive and of the negative entries that were left out


def by_row(tiles: Iterable[Tile], k: int) -> Selected:
    """The ``k`` entries of largest magnitude in each row; of equal ones those further to the left."""
    return _joined([_strongest(keys, entries, k) for _, keys, entries in tiles])


def by_mass(tiles: Callable[[], Iterator[Tile]], share: float, own: Tensor | None) -> Selected:
    """The smallest set of entries of largest magnitude that hold ``share`` of the sum of magnitudes, ties kept.

    Two passes: one fills a histogram over the leading bits of the magnitudes, which orders them as the numbers do; the
    other collects what lies in the bin of the threshold or above it, and the threshold is found among the former. Sums
    are float64; on CUDA a histogram's are taken in no fixed order.

    Args:
        tiles: gives the same tiles every time.
        own: added to the diagonal for the comparison alone.
    """
    masses = torch.zeros((), dtype=torch.float64)
    for position, keys, entries in tiles():
        size = _sizes(position, keys, entries, own).flatten()
        _, bits, low = _KEYS[size.dtype]
        masses = masses.to(size.device) + torch.bincount(_bins(size), weights=size.double(), minlength=1 << bits - low)
    above = masses.view(-1).flip(0).cumsum(0).flip(0)  # what a bin holds with all above it
    goal = share * above[0].item()
    if goal == 0:
        return _joined([_chosen(keys, entries, entries.isnan()) for _, keys, entries in tiles()])
    last = int((above >= goal).nonzero()[-1])
    held = (above[last] - masses[last]).item()

    parts, sizes, within = [], [], []
    for position, keys, entries in tiles():
        size = _sizes(position, keys, entries, own)
        bins = _bins(size)
        within.append(size[bins == last].cpu())
        mask = (bins >= last) & (entries != 0) & (size > 0)
        sizes.append(size[mask].cpu())
        parts.append(_chosen(keys, entries, mask))
    ordered = torch.cat(within).sort(descending=True).values
    reached = held + ordered.double().cumsum(0) >= goal
    # Where rounding leaves the sum short of the goal, the bin is needed whole.
    threshold = ordered[int(reached.int().argmax())] if reached.any() else ordered[-1]
    return _without(_joined(parts), torch.cat(sizes) < threshold)


def _sizes(position: Tensor, keys: slice, entries: Tensor, own: Tensor | None) -> Tensor:
    """|entries|, those of the diagonal with ``own`` added."""
    if own is None:
        return entries.abs()
    entries = entries.clone()
    entries[torch.arange(len(position), device=entries.device), position - keys.start] += own[position]
    return entries.abs_()


def _bins(size: Tensor) -> Tensor:
    """Bin numbers of numbers >= 0, in their order."""
    integers, _, low = _KEYS[size.dtype]
    return size.view(integers) >> low


def _strongest(keys: slice, entries: Tensor, k: int) -> Selected:
    """As `by_row`, for one tile; zeros are never chosen."""
    size = entries.abs()
    if k >= size.shape[1]:
        return _chosen(keys, entries, size > 0)
    values, columns = size.topk(k + 1)
    if (values[:, k] == values[:, k - 1]).logical_and_(values[:, k] > 0).any():  # ties: which of them came is undefined
        chosen = size > values[:, k - 1 : k]
        for row in range(len(size)):
            ties = (size[row] == values[row, k - 1]).nonzero().flatten()
            chosen[row, ties[: k - int(chosen[row].sum())]] = True
        return _chosen(keys, entries, chosen & (size > 0))
    columns = columns[:, :k].sort(-1).values
    weights = entries.gather(1, columns)
    entries, size = entries.scatter(1, columns, 0), size.scatter_(1, columns, 0)
    signed, whole = entries.sum(-1), size.sum(-1)
    dropped = torch.stack([(whole + signed).clamp(min=0), (signed - whole).clamp(max=0)], -1) / 2
    there = weights != 0
    columns = columns[there] + keys.start
    return Selected(there.sum(-1).cpu(), columns.int().cpu(), weights[there].cpu(), dropped.cpu())


def _chosen(keys: slice, entries: Tensor, mask: Tensor) -> Selected:
    rest = entries.masked_fill(mask, 0)
    dropped = torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
    columns = mask.nonzero()[:, 1] + keys.start
    return Selected(mask.sum(-1).cpu(), columns.int().cpu(), entries[mask].cpu(), dropped.cpu())


def _joined(parts: list[Selected]) -> Selected:
    return Selected(*map(torch.cat, zip(*parts, strict=True)))


def _without(selected: Selected, leave: Tensor) -> Selected:
    """``selected`` less the edges of a mask."""
    rows = torch.repeat_interleave(torch.arange(len(selected.counts)), selected.counts)
    sign = (selected.weights < 0).long()
    dropped = selected.dropped.index_put((rows[leave], sign[leave]), selected.weights[leave], accumulate=True)
    counts = selected.counts - rows[leave].bincount(minlength=len(selected.counts))
    return Selected(counts, selected.columns[~leave], selected.weights[~leave], dropped)
