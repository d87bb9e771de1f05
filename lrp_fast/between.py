"""`between`: relevance that hidden states pass to each other across several layers."""

from __future__ import annotations

import torch

from . import question
from .graph.spec import whole
from .hf import decoder_layers, device_of
from .memory import Memory, planned
from .rules import Rules
from .stream import Progress, propagate_between


def between(
    model,
    input_ids,
    source_layer: int,
    target_layer: int,
    rows,
    target=None,
    contrast=None,
    position=-1,
    rule: str | Rules = "attnlrp",
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Edges that skip layers: what nodes of one layer pass to nodes of another, by every route between them.

    There is no closed form for them, and edges of adjacent layers do not multiply up to them. The relevance gradient at
    the target layer is split into the wanted rows, and each is propagated by itself, all from one forward pass: a
    vector-Jacobian product a row. Over all rows, the edges out of a node add up to its relevance; but for nodes
    that layers above the target read by a side route (embeddings, another layer's keys and values).

    Args:
        source_layer, target_layer: 0 is the embeddings, l the output of decoder layer l - 1; source below target.
        rows: the target positions, a sequence of whole numbers; from the end where negative. Memory grows with them,
            as with so many targets of `lrp_fast.plan`.
        model, input_ids, target, contrast, position, rule, memory, tokenizer, progress: as in `lrp_fast.attribute`, but
            for one decision. There is no result to carry `attribute`'s notes on the prompt.

    Returns:
        (R, N) signed relevance, row r = node (target_layer, rows[r]), column i = node (source_layer, i); float32,
        float64 for a float64 model. With ``target_layer = source_layer + 1``, rows of ``Graph.dense(source_layer)``.

    Raises:
        ValueError, TypeError: as `lrp_fast.attribute`; for layers or rows that the context lacks, and if the budget
            cannot hold so many rows.
    """
    asked = question.read(model, input_ids, target, contrast, position, rule, tokenizer)
    if asked.several:
        raise TypeError("between explains one decision: call it once for each target and contrast")
    count, length = len(decoder_layers(model)), len(asked.ids)
    demand = "source_layer and target_layer must hold whole numbers"
    layers = [whole(one, demand) for one in (source_layer, target_layer)]
    if not 0 <= layers[0] < layers[1] <= count:
        raise ValueError(
            f"source_layer must be below target_layer, both from 0 to {count}, not {layers[0]} and {layers[1]}"
        )
    if isinstance(rows, str) or not hasattr(rows, "__iter__"):
        raise TypeError(f"rows must be a sequence of whole numbers, not {rows!r}")
    rows = [whole(one, "rows must hold whole numbers") for one in rows]
    for row in rows:
        if not -length <= row < length:
            raise ValueError(f"row {row} is outside the context's {length} tokens")
    if not rows:
        raise ValueError("rows is empty: name at least one target position")
    counts = {"positions": len(asked.positions), "targets": len(rows)}
    plan = planned(model, length, asked.rules, memory, **counts)
    found = propagate_between(
        model,
        asked.ids[None].to(device_of(model.get_input_embeddings())),
        asked.positions,
        asked.objective([]),
        asked.rules,
        plan,
        *layers,
        [row % length for row in rows],
        progress,
        asked.images,
    )
    if not found.isfinite().all():
        raise ValueError(f"relevance is not finite between layers {layers[0]} and {layers[1]}: {model.dtype} overflows")
    return found
