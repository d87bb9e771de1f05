"""Which rows of a relevance gradient carry anything: the others are skipped, exactly."""

from __future__ import annotations

from torch import Tensor


def active_rows(g: Tensor) -> Tensor | None:
    """Indices of the rows of ``g`` (rows, ...) that are not all zero; None where a dense pass is as good.

    Above the last attention only the target positions carry relevance. Elsewhere row 0 does too, so that one
    look at it usually settles the question. Nobody looks on a GPU: the look would wait for it.
    """
    if g.shape[0] < 2 or g.is_cuda or g[0].any():
        return None
    rows = g.flatten(1).any(-1).nonzero().squeeze(-1)
    return rows if 2 * len(rows) <= g.shape[0] else None
