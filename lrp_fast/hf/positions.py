"""How long a prompt may be: tables of learned positions end, rotary ones do not, but are made for some length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .families import handled
from .owner import known
from .walk import modules_of, named_modules_of

_POSITIONS = re.compile(r"(^|\.)(wpe|\w*position\w*|pos_emb\w*)(\.|$)")


def position_limit(model: nn.Module) -> int | None:
    """Rows of the model's table of learned positions (GPT-2's ``wpe``) that stand for some; None where there is none,
    and so no end."""
    return known(model, _position_limit)


def _position_limit(model: nn.Module) -> int | None:
    tables = {
        module
        for path, module in named_modules_of(model)
        if isinstance(module, nn.Embedding) and _POSITIONS.search(path)
    }
    if not tables:  # of most models
        return None
    rows = [module.num_embeddings - _left_out(module) for _, module, _ in handled(model) if module in tables]
    return min(rows, default=None)


def _left_out(table: nn.Embedding) -> int:
    """How many of its first rows stand for no position: OPT's, or RoBERTa's up to the one that padding has."""
    return getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1


def made_for(model: nn.Module) -> int | None:
    """Positions that the model was made for by its config, with what its rotary ones are stretched by; None if it is
    silent.
    """
    config = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    return max([most, *(_reach(one, most) for one in _rotations(config))])


def _rotations(config) -> list[dict]:
    """Its rotary parameters, one for all layers or one for each kind of them."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [one for one in given.values() if isinstance(one, dict)]
    return kinds or [given]


def _reach(rotation: dict, most: int) -> int:
    if rotation.get("rope_type", "default") == "default":
        return most
    original = rotation.get("original_max_position_embeddings") or most
    return int(original * (rotation.get("factor") or 1))


def _dynamic(model: nn.Module) -> list[nn.Module]:
    return [module for module in modules_of(model) if "dynamic" in str(_rope_type(module))]


def _rope_type(module: nn.Module):
    # Not getattr alone: what a module lacks, PyTorch looks for thrice, and most lack this.
    return module.rope_type if hasattr(type(module), "rope_type") else module.__dict__.get("rope_type", "")


@contextmanager
def keeping_rotations(model: nn.Module) -> Iterator[None]:
    """What dynamic NTK keeps of the longest prompt so far is what it was, behind the block.

    transformers computes a shorter prompt with it, and so one that is not like the prompt alone.
    """
    dynamic = known(model, _dynamic)
    kept = [(module, dict(module.__dict__), dict(module._buffers)) for module in dynamic]
    try:
        yield
    finally:
        for module, entries, buffers in kept:
            for name in module.__dict__.keys() - entries.keys():
                del module.__dict__[name]
            module.__dict__.update(entries)
            module._buffers.clear()
            module._buffers.update(buffers)
