"""Which rows and columns of a relevance gradient carry anything: the others are skipped, exactly."""

from __future__ import annotations

from torch import Tensor

_MUCH = 16  # times as many columns as are read: the rows of the weight that belong to them are copied


def active_rows(g: Tensor) -> Tensor | None:
    """Indices of the rows of ``g`` (rows, ...) that are not all zero; None where a dense pass is as good.

    Above the last attention only the target positions carry relevance. Elsewhere row 0 does too, so that one
    look at it usually settles the question. Nobody looks on a GPU: the look would wait for it.
    """
    if g.shape[0] < 2 or g.is_cuda or g[0].any():
        return None
    rows = g.flatten(1).any(-1).nonzero().squeeze(-1)
    return rows if 2 * len(rows) <= g.shape[0] else None


def active_columns(g: Tensor) -> Tensor | None:
    """Indices of the columns of ``g`` (rows, columns) that are not all zero; None where a dense pass is as good.

    Of the logits of a vocabulary those alone carry relevance that are explained.
    """
    if g.is_cuda or (len(g) and g[0].all()):
        return None
    columns = g.any(0).nonzero().squeeze(-1)
    return columns if _MUCH * len(columns) <= g.shape[1] else None
