"""``lrp-fast doctor``: what is covered, and whether a device computes it rightly."""

from __future__ import annotations

import argparse
import json
import sys

from .config import read_config


def run(options: argparse.Namespace) -> int:
    given = [name for name in ("dtype", "impl") if getattr(options, name) is not None]
    if options.device is None and given:
        raise ValueError(f"--{given[0]} is of the operations of a device: name it with --device, cuda say")
    if options.device is None and options.model is None:
        raise ValueError("nothing to look at: name a model, or a device with --device cuda, or both")
    config = None if options.model is None else read_config(options.model)
    parts = [] if config is None else [_model(config)]
    if options.device is not None:
        parts.append(_device(options, config))
    healthy = all(one for one, _, _ in parts)
    if options.json:
        print(json.dumps({name: value for _, told, _ in parts for name, value in told.items()} | {"healthy": healthy}))
    else:
        print("\n\n".join(text for _, _, text in parts))
    return 0 if healthy else 1


def _model(config) -> tuple[bool, dict, str]:
    """Whether all of a model is covered and its checks pass; that for machines; that for people."""
    from ..doctor import examine
    from ..hf import unreadable_format
    from ..report.findings import findings

    weights = unreadable_format(config)
    found, checks = examine(config)
    healthy = weights is None and bool(checks) and all(check.passed for check in checks)
    told = {"modules": [one._asdict() for one in found], "checks": [one._asdict() for one in checks]}
    return healthy, told | {"weights": weights}, findings(found, weights, checks)


def _device(options: argparse.Namespace, config) -> tuple[bool, dict, str]:
    """The same of a device's operations."""
    import torch
    from tqdm import tqdm

    from ..doctor import head_dims_of, operations, setting
    from ..files import without_infinity
    from ..report.operations import operations_table
    from .load import read_device

    device = read_device(options.device)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    where = setting(device, dtype)
    with tqdm(total=1, file=sys.stderr, leave=False, disable=None, bar_format="{desc}|{bar}| {elapsed}") as bar:

        def progress(done: int, count: int) -> None:
            bar.total, bar.n = count, done
            bar.set_description(f"operation {done} of {count} ")

        dims = None if config is None else head_dims_of(config)
        held = operations(device, dtype, impl=options.impl or "auto", dims=dims, progress=progress)
    rows = [one._asdict() | {"passed": one.passed} for one in held]
    told = {"setting": where._asdict(), "operations": without_infinity(rows)}
    return all(one.passed for one in held), told, operations_table(where, held)
