"""Graphs as the C++ core takes them."""

from __future__ import annotations

import numpy as np


def arrays(graph) -> tuple[np.ndarray, ...]:
    """The seven arrays that every algorithm of ``lrp_fast._native`` asks for; nothing is copied."""
    return (
        graph.row_offsets.numpy(),
        graph.rows.numpy(),
        graph.indptr.numpy(),
        graph.columns.numpy(),
        graph.weights.numpy(),
        graph.self_edges.numpy(),
        graph.dropped_mass.numpy(),
    )
