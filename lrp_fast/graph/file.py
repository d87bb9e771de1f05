"""Graphs on disk: one safetensors file, never pickle, whose arrays are mapped into memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import aside

_FORMAT = "lrp_fast.graph/1"
_ARRAYS = ("nodes", "self_edges", "row_offsets", "rows", "indptr", "columns", "dropped_mass", "dropped_self")


def save(graph, path: str | os.PathLike, half: bool) -> None:
    about = {"format": _FORMAT, "tokens": graph.tokens, "manifest": graph.manifest}
    tensors = {name: getattr(graph, name) for name in _ARRAYS}
    if half:
        tensors["weights"], tensors["scales"] = _halved(graph.weights.numpy(), graph.indptr.numpy())
    else:
        tensors["weights"] = graph.weights
    metadata = {"lrp_fast": json.dumps(about)}
    with aside(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors, part, metadata=metadata)  # which leaves a file that only its owner may read
        part.chmod(mode)


def load(cls, path: str | os.PathLike):
    name = repr(os.fspath(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"no graph at {name}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("lrp_fast", "{}"))
            if not isinstance(about, dict) or about.get("format") != _FORMAT:
                raise ValueError("it is a safetensors file, but not one of that kind")
            tensors = {one: file.get_tensor(one) for one in (*_ARRAYS, "weights")}
            scales = file.get_tensor("scales") if "scales" in file.keys() else None  # noqa: SIM118, no mapping
        for one, tensor in tensors.items():
            if tensor.data_ptr() % tensor.element_size():
                raise ValueError(f"{one} does not lie on a multiple of its element size")
        if scales is not None:
            tensors["weights"] = _restored(tensors["weights"], scales, tensors["indptr"], tensors["nodes"].dtype)
        return cls(**tensors, tokens=about["tokens"], manifest=about["manifest"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise ValueError(f"{name} is not a whole file that Graph.save wrote: {reason}") from error


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
    return weights.to(dtype) * torch.repeat_interleave(scales, indptr.diff())
