"""``lrp-fast plan``: what it would take."""

from __future__ import annotations

import argparse
import dataclasses
import json

from .config import read_config
from .explain import read_spec


def run(options: argparse.Namespace) -> int:
    import torch

    from .. import Memory, plan
    from ..hf import explained_class

    config = read_config(options.model)
    dtype = options.dtype or ("float32" if options.device == "cpu" else config.dtype or "float32")
    with torch.device("meta"):
        model = explained_class(config)._from_config(config, dtype=dtype)
    memory = Memory(options.device_budget, options.host_budget, options.offload_dir)
    graph = None if options.topk is None and options.mass is None else read_spec(options)
    if graph is None and (options.layers or options.node_threshold or options.absolute):
        raise ValueError("--layers, --node-threshold and --absolute are of a graph: give --topk or --mass too")
    counts = {"targets": options.targets, "device": options.device}
    planned = plan(model, options.tokens, rule=options.rule, memory=memory, graph=graph, **counts)
    if options.json:
        print(json.dumps(dataclasses.asdict(planned)))
    else:
        dtype = str(model.dtype).removeprefix("torch.")
        print(f"{options.tokens:,} tokens of {options.model}, {dtype}, rule {options.rule}")
        print(planned)
    return 0
