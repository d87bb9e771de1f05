"""Attributions on disk: one safetensors file, never pickle, whose parts belong together."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from . import reading, sources
from .explained import Explained
from .files import write_atomically
from .ops import read_tolerance
from .rules import Rules

_FORMAT = "lrp_fast.attribution/1"
_SAID = ("value", "explained", "rules", "model", "tokens", "special", "tolerance", "prompt_tokens")
_TENSORS = ("layers", "input_ids", "dropped")


def save(result, path: str | os.PathLike) -> None:
    write_atomically(path, as_bytes(result))


def as_bytes(result, checked: bool = True) -> bytes:
    """The file of a result; one that was made a moment ago, and is as it was made, need not be ``checked``."""
    about = {name: getattr(result, name) for name in _SAID}
    about |= {"explained": result.explained.as_dict(), "rules": {**vars(result.rules)}}
    tensors = {name: getattr(result, name).detach().cpu().contiguous() for name in _TENSORS}
    if result.sources is not None:  # of which the rest is added up again
        about["sources"] = result.sources.names
        tensors["source_of"] = result.sources.groups.detach().cpu().contiguous()
    metadata = reading.metadata(about, _FORMAT, checked)
    if checked:
        _parts(about, tensors)  # what `load` would refuse is not written
    return to_bytes({name: one.numpy() for name, one in tensors.items()}, metadata=metadata)


def load(cls, path: str | os.PathLike):
    name = repr(os.fspath(path))
    try:
        about, shapes = reading.header(path, _FORMAT)
        about = {"prompt_tokens": None} | about  # files from before it was kept do not say
        # Files from before there was a tolerance are of exact passes.
        exact = "tolerance" not in about and "dropped" not in shapes
        divided = "sources" in about or "source_of" in shapes
        names = _TENSORS[: 2 if exact else 3] + ("source_of",) * divided
        reading.whole_of(about | ({"tolerance": 0.0} if exact else {}), _SAID + ("sources",) * divided)
        reading.whole_of(shapes, names)
        _check_sizes(shapes)
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
    _check_sizes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
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
    length = about["prompt_tokens"]
    if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
        raise TypeError(f"prompt_tokens must be a whole number, or nothing, not {type(length).__name__}")
    if length is not None and not 1 <= length <= num_tokens:
        raise ValueError(f"prompt_tokens must be 1 to the {num_tokens} tokens, not {length}")
    whole = about | tensors | decision(about, num_tokens)
    if "source_of" in whole:
        found = sources.check(whole["sources"], whole.pop("source_of"))
        whole["sources"] = sources.Sources.of(layers, found)
    return whole


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
    """TypeError or ValueError unless ``value`` is a finite number, and the sum of the terms where it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"value must be a number, not {type(value).__name__}")
    if not abs(value) <= sys.float_info.max:
        raise ValueError("value must be finite")
    if explained.kind == "function":  # of all the logits, which nobody keeps
        return
    logits = [logit for term in explained.terms for logit in (term.target.logit, -(term.contrast_logit or 0.0))]
    # They were added one by one, in float32 or better.
    allowed = (len(logits) + 1) * 2.0**-24 * sum(map(abs, logits))
    if not abs(value - sum(logits)) <= allowed:
        raise ValueError(f"value must be the sum of what is explained, {sum(logits):.7g}, and is {value:.7g}")


def _check_sizes(shapes: dict[str, tuple[int, ...]]) -> None:
    layers, input_ids = shapes["layers"], shapes["input_ids"]
    dropped, source_of = shapes.get("dropped"), shapes.get("source_of")
    if len(layers) != 2 or layers[0] < 2 or layers[1] < 1:
        raise ValueError(f"layers must be (L + 1, N) with at least 2 layers and 1 token, not {layers}")
    if input_ids != layers[1:]:
        raise ValueError(f"input_ids must be {layers[1:]} for layers {layers}, not {input_ids}")
    if dropped is not None and dropped != (layers[0] - 1,):
        raise ValueError(f"dropped must be ({layers[0] - 1},), one a layer, not {dropped}")
    if source_of is not None and source_of != input_ids:
        raise ValueError(f"source_of must be {input_ids}, one a token, not {source_of}")


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
