"""Graphs on disk: one safetensors file, never pickle, whose arrays are mapped into memory."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import reading
from ..files import aside
from ..saved import decision

_FORMAT = "lrp_fast.graph/1"
_ARRAYS = ("nodes", "self_edges", "row_offsets", "rows", "indptr", "columns", "dropped_mass", "dropped_self")


def save(graph, path: str | os.PathLike, half: bool, sweep: bool = True) -> None:
    """`Graph.save`; ``sweep`` as of `lrp_fast.files.aside`."""
    graph = replace(graph)  # which checks the arrays again: they may have been written to
    _check_manifest(graph)
    about = {"tokens": graph.tokens, "manifest": graph.manifest}
    if not graph.causal:  # which a file that does not say is
        about["causal"] = False
    metadata = reading.metadata(about, _FORMAT)
    tensors = {name: getattr(graph, name) for name in _ARRAYS}
    if half:
        tensors["weights"], tensors["scales"] = _halved(graph.weights.numpy(), graph.indptr.numpy())
    else:
        tensors["weights"] = graph.weights
    with aside(path, sweep) as part:
        part.touch()
        mode = part.stat().st_mode
        try:
            save_file(tensors, part, metadata=metadata)  # which leaves a file that only its owner may read
        except SafetensorError as error:  # its words for what the system said
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        part.chmod(mode)


def load(cls, path: str | os.PathLike):
    name = repr(os.fspath(path))
    try:
        about, shapes = reading.header(path, _FORMAT)
        reading.whole_of(about, ("tokens", "manifest", *(["causal"] if "causal" in about else [])))
        reading.whole_of(shapes, (*_ARRAYS, "weights", *(["scales"] if "scales" in shapes else [])))
        with safe_open(path, framework="pt") as file:
            tensors = {one: file.get_tensor(one) for one in shapes}
        for one, tensor in tensors.items():
            if tensor.data_ptr() % tensor.element_size():
                raise ValueError(f"{one} does not lie on a multiple of its element size")
        scales = tensors.pop("scales", None)
        if scales is not None:
            tensors["weights"] = _restored(tensors["weights"], scales, tensors["indptr"], tensors["nodes"].dtype)
        graph = cls(**tensors, **about)
        _check_manifest(graph)
        return graph
    except reading.OtherFile as error:
        instead = f": {error}" if str(error) else ""
        reason = f"it is a safetensors file, but not one of that kind{instead}"
        raise ValueError(f"{name} is not a whole file that Graph.save wrote: {reason}") from error
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        reason = reading.cut(str(error).partition("\n")[0])
        raise ValueError(f"{name} is not a whole file that Graph.save wrote: {reason}; save it anew") from error


def _check_manifest(graph) -> None:
    """TypeError or ValueError where the manifest says what was explained, and not as `attribute` said it of this graph.

    A difference, groups of tokens and graphs made by hand do not say it.
    """
    if "explained" not in graph.manifest:
        return
    for name in ("value", "rules", "model"):
        if name not in graph.manifest:
            raise ValueError(f"manifest holds 'explained', and no {name!r} beside it")
    decision(graph.manifest, graph.num_tokens)


def _halved(weights: np.ndarray, indptr: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 weights over the largest |weight| of their row, and (R,) those."""
    counts = np.diff(indptr)
    scales = np.zeros(len(counts), weights.dtype)
    if len(weights):
        scales[counts > 0] = np.maximum.reduceat(np.abs(weights), indptr[:-1][counts > 0])
    divisors = np.repeat(np.where(scales > 0, scales, 1), counts)
    return torch.from_numpy((weights / divisors).astype(np.float16)), torch.from_numpy(scales)


def _restored(weights, scales, indptr, dtype: torch.dtype) -> torch.Tensor:
    if weights.dtype != torch.float16 or scales.dtype != dtype:
        raise ValueError(f"half weights must be float16 with scales of {dtype}, not {weights.dtype} and {scales.dtype}")
    fits = indptr.dtype == torch.int64 and indptr.ndim == 1 and scales.shape == (len(indptr) - 1,)
    # Compared, not subtracted: differences of hostile numbers would wrap around.
    if not fits or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any() or weights.shape != (int(indptr[-1]),):
        raise ValueError("half weights, scales and indptr do not fit each other")
    if not (scales >= 0).all() or not (weights.abs() <= 1).all():
        raise ValueError("half weights must be shares of their row's largest, and that 0 or above")
    return weights.to(dtype) * torch.repeat_interleave(scales, indptr.diff())
