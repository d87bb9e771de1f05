"""Attributions on disk: one safetensors file, never pickle, whose parts belong together."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from . import reading
from .files import write_atomically
from .ops import read_tolerance
from .rules import Rules
from .targets import Explained

_FORMAT = "lrp_fast.attribution/1"
_SAID = ("value", "explained", "rules", "model", "tokens", "special", "tolerance")
_TENSORS = ("layers", "input_ids", "dropped")


def save(result, path: str | os.PathLike) -> None:
    about = {name: getattr(result, name) for name in _SAID}
    about |= {"explained": asdict(result.explained), "rules": asdict(result.rules)}
    tensors = {name: getattr(result, name).detach().cpu().contiguous() for name in _TENSORS}
    metadata = reading.metadata(about, _FORMAT)
    _parts(about, tensors)  # what `load` would refuse is not written
    write_atomically(path, to_bytes(tensors, metadata=metadata))


def load(cls, path: str | os.PathLike):
    name = repr(os.fspath(path))
    try:
        about, shapes = reading.header(path, _FORMAT)
        # Files from before there was a tolerance are of exact passes.
        exact = "tolerance" not in about and "dropped" not in shapes
        names = _TENSORS[: 2 if exact else 3]
        reading.whole_of(about | ({"tolerance": 0.0} if exact else {}), _SAID)
        reading.whole_of(shapes, names)
        _check_shapes(**shapes)
        with safe_open(path, framework="pt") as file:
            tensors = {one: file.get_tensor(one).clone() for one in names}  # not mapped: the file may go
        if exact:
            about["tolerance"] = 0.0
            tensors["dropped"] = torch.zeros(len(tensors["layers"]) - 1, dtype=torch.float64)
        return cls(**_parts(about, tensors))
    except reading.OtherFile as error:
        instead = f": {error}" if str(error) else ""
        raise ValueError(f"{name} is a safetensors file, but not one that Attribution.save wrote{instead}") from error
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        reason = reading.cut(str(error).partition("\n")[0])
        raise ValueError(f"{name} is not a whole file that Attribution.save wrote: {reason}; save it anew") from error


def _parts(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of an Attribution; TypeError or ValueError, one sentence, where they do not fit each other."""
    layers, input_ids = tensors["layers"], tensors["input_ids"]
    if layers.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"layers must be float32 or float64, not {layers.dtype}")
    if input_ids.dtype != torch.int64:
        raise TypeError(f"input_ids must be int64, not {input_ids.dtype}")
    dropped = tensors["dropped"]
    if dropped.dtype != torch.float64:
        raise TypeError(f"dropped must be float64, not {dropped.dtype}")
    _check_shapes(tuple(layers.shape), tuple(input_ids.shape), tuple(dropped.shape))
    tolerance = read_tolerance(about["tolerance"])
    if not ((dropped >= 0) & (dropped <= tolerance)).all():
        raise ValueError(f"dropped must lie between 0 and the tolerance, {tolerance}")
    wrong = (~layers.isfinite()).nonzero()
    if len(wrong):
        raise ValueError(f"layers must be finite, and are not at layer {wrong[0, 0]}, position {wrong[0, 1]}")
    if input_ids.min() < 0:
        raise ValueError(f"input_ids must be 0 or above, and {input_ids.min()} is there")
    num_tokens = len(input_ids)
    _check_list("tokens", about["tokens"], str, "strings", num_tokens)
    _check_list("special", about["special"], bool, "truth values", num_tokens)
    return about | tensors | decision(about, num_tokens)


def decision(about: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """What was explained and by which rule, read out of what a file says: "explained" and "rules".

    Raises:
        TypeError, ValueError: one sentence, unless that, the value and the model's name are whole, and fit each other
            and the tokens.
    """
    if not isinstance(about["model"], str):
        raise TypeError("model must be a string")
    explained = Explained.from_dict(about["explained"])
    for term in explained.terms:
        if term.position >= num_tokens:
            raise ValueError(f"explained names position {term.position} of {num_tokens} tokens")
    _check_value(about["value"], explained)
    return {"explained": explained, "rules": _rules(about["rules"])}


def _check_value(value, explained: Explained) -> None:
    """TypeError or ValueError unless ``value`` is the sum of the terms."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"value must be a number, not {type(value).__name__}")
    if not abs(value) <= sys.float_info.max:
        raise ValueError("value must be finite")
    logits = [logit for term in explained.terms for logit in (term.target.logit, -(term.contrast_logit or 0.0))]
    # They were added one by one, in float32 or better.
    allowed = (len(logits) + 1) * 2.0**-24 * sum(map(abs, logits))
    if not abs(value - sum(logits)) <= allowed:
        raise ValueError(f"value must be the sum of what is explained, {sum(logits):.7g}, and is {value:.7g}")


def _check_shapes(
    layers: tuple[int, ...], input_ids: tuple[int, ...], dropped: tuple[int, ...] | None = None
) -> None:
    if len(layers) != 2 or layers[0] < 2 or layers[1] < 1:
        raise ValueError(f"layers must be (L + 1, N) with at least 2 layers and 1 token, not {layers}")
    if input_ids != layers[1:]:
        raise ValueError(f"input_ids must be {layers[1:]} for layers {layers}, not {input_ids}")
    if dropped is not None and dropped != (layers[0] - 1,):
        raise ValueError(f"dropped must be ({layers[0] - 1},), one a layer, not {dropped}")


def _check_list(name: str, value, kind: type, words: str, length: int) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise TypeError(f"{name} must be a list of {words}, or nothing")
    if len(value) != length:
        raise ValueError(f"{name} must be {length} {words}, one a token, not {len(value)}")


def _rules(said) -> Rules:
    names = [field.name for field in fields(Rules)]
    if not isinstance(said, dict) or said.keys() != set(names):
        raise TypeError(f"rules must hold {', '.join(names)}, and nothing else")
    return Rules(**said)
