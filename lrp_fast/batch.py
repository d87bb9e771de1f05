"""`attribute_batch`: several prompts, each explained as if it were alone."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping

import numpy as np
import torch

from . import question
from .attribution import Attribution, attribute
from .graph import GraphSpec
from .hf import real_tokens
from .memory import Memory
from .rules import Rules
from .stream import Progress


def attribute_batch(
    model,
    input_ids,
    attention_mask=None,
    target=None,
    contrast=None,
    position=-1,
    rule: str | Rules = "attnlrp",
    graph: GraphSpec | None = None,
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
) -> list[Attribution]:
    """`attribute` for every row of a batch, without the row's padding.

    The rows run one after another, so that a row's numbers, and the memory it takes, are those of the prompt alone; all
    of them are checked before the first one runs.

        lrp_fast.attribute_batch(model, **tokenizer(prompts, padding=True, return_tensors="pt"), target=[5, 7])

    Args:
        input_ids: a sequence of prompts, strings or token ids, of any lengths; or a LongTensor (B, N).
        attention_mask: (B, N), needed with such a tensor: 1 for tokens, 0 for padding, on the left or on the right.
        target, contrast, position: as in `attribute`, for one decision. A list has an entry for each row; anything else
            holds for all of them. Positions count a row's own tokens, so that -1 is its last.
        model, rule, graph, memory, tokenizer, progress: as in `attribute`.

    Returns:
        One result a row, in their order.

    Raises:
        ValueError, TypeError, UnsupportedModuleError: as `attribute`, with the row's number.
    """
    question.check_model(model)
    prompts = _unpadded(input_ids, attention_mask)
    given = {"target": target, "contrast": contrast, "position": position}
    for name, value in given.items():
        if isinstance(value, list) and len(value) != len(prompts):
            raise ValueError(f"{name} is a list of {len(value)} for {len(prompts)} prompts: give one entry for each")
    rows = []
    for row, prompt in enumerate(prompts):
        asked = {name: value[row] if isinstance(value, list) else value for name, value in given.items()}
        if isinstance(asked["target"], list) or isinstance(asked["contrast"], list):
            raise TypeError(f"row {row} has several targets: attribute_batch explains one decision a row")
        try:
            question.read(model, prompt, **asked, rule=rule, tokenizer=tokenizer)
        except (ValueError, TypeError) as error:
            raise type(error)(f"row {row}: {error}") from error
        rows.append((prompt, asked))
    options = {"rule": rule, "graph": graph, "memory": memory, "tokenizer": tokenizer, "progress": progress}
    return [attribute(model, prompt, **asked, **options) for prompt, asked in rows]


def _unpadded(input_ids, attention_mask) -> list:
    """The rows, each without its padding."""
    if isinstance(input_ids, str):
        raise TypeError("input_ids is one string: attribute_batch takes a sequence of prompts")
    if isinstance(input_ids, Mapping | UserDict):
        raise TypeError("input_ids is all that a tokenizer returned: call attribute_batch(model, **batch)")
    if attention_mask is None:
        if isinstance(input_ids, torch.Tensor) or (isinstance(input_ids, np.ndarray) and input_ids.dtype.kind in "iuf"):
            raise ValueError("input_ids is an array, which may be padded: give its attention_mask with it")
        try:
            prompts = list(input_ids)
        except TypeError as error:
            raise TypeError(f"input_ids must be a sequence of prompts, not {type(input_ids).__name__}") from error
    else:
        try:
            ids, mask = torch.as_tensor(input_ids), torch.as_tensor(attention_mask)
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"input_ids and attention_mask must both be (B, N), or leave the mask out: {error}"
            raise ValueError(message) from error
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ValueError(
                f"input_ids and attention_mask must both be (B, N), not {tuple(ids.shape)} and {tuple(mask.shape)}"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("attention_mask must hold 1 for tokens and 0 for padding, and nothing else")
        prompts = [row[start:end] for row, (start, end) in zip(ids, real_tokens(mask).tolist(), strict=True)]
    if not prompts:
        raise ValueError("input_ids is an empty batch: give at least one prompt")
    return prompts
