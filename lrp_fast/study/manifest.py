"""What a run is, manifest.json in its folder: a run that goes on has to be the same.

    model, revision              the model's name and, of one from a hub, its commit
    fingerprint                  a digest of its config and of some numbers of each of its weights
    dtype, device                "float32", "cpu", ...
    rules, tolerance, graph      as of `lrp_fast.attribute`; graph is a GraphSpec's fields, or null
    observe                      {"heads": 10, "lens": true, ...}, as of `lrp_fast.study.observed`, or null
    versions                     of lrp_fast, torch and transformers
    cases                        sha256 of cases.jsonl
    seed, command, begun         as `run` was given them, and when that was (UTC)
    packs                        [{"tokens": of all of them, "ids": [...], "sums": [...]}, ...], where a sum is
                                 the CRC-32 of a case's tokens; cases in none are refused
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version

import torch

from ..hf import device_of
from .folder import Folder

# What a run that goes on must have in common with the one that was begun.
_SAME = {
    "model": "the model",
    "revision": "the revision",
    "fingerprint": "weights of the fingerprint",
    "dtype": "the dtype",
    "device": "the device",
    "rules": "the rule",
    "tolerance": "the tolerance",
    "graph": "the graph",
    "observe": "the observers",
    "versions": "the versions",
    "cases": "cases of the digest",
}


def of(model, how, cases: bytes) -> dict:
    """What `_SAME` names, of a run of these cases (their file) by `lrp_fast.study.passes.How`."""
    from .. import __version__

    name = str(getattr(model.config, "name_or_path", "") or "")
    if os.path.isabs(name) or os.path.isdir(name):
        name = os.path.basename(os.path.abspath(name))  # folders get shared: no paths
    return {
        "model": name,
        "revision": getattr(model.config, "_commit_hash", None),
        "fingerprint": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_of(model.get_input_embeddings()).type,
        "rules": asdict(how.rules),
        "tolerance": how.tolerance,
        "graph": None if how.graph is None else _listed(asdict(how.graph)),
        "observe": how.observe,
        "versions": {"lrp_fast": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "cases": hashlib.sha256(cases).hexdigest(),
    }


def _listed(given: dict) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def check(folder: Folder, begun: dict, same: dict) -> None:
    """ValueError where a run was begun with something else."""
    for name, words in _SAME.items():
        if begun.get(name) != same[name]:
            raise ValueError(
                f"the run in {os.fspath(folder.path)!r} was begun with {words} {_said(begun.get(name))}, and this is "
                f"{_said(same[name])}: name another folder, or give what it was begun with"
            )


def _said(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items() if one not in (None, 0.0))
    return "none" if value is None else str(value)


def fingerprint(model) -> str:
    """A digest of the model's config and of up to 64 numbers of each of its weights: two checkpoints have two."""
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    config.pop("transformers_version", None)  # which a config that was saved has, and one in memory has not
    digest = hashlib.sha256(f"{type(model).__name__} {json.dumps(config, sort_keys=True, default=str)}".encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        data = weight.detach()
        if type(data) is torch.Tensor and not data.is_meta and data.numel() and data.is_contiguous():
            some = data.reshape(-1)[:: max(1, data.numel() // 64)][:64]
            digest.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
