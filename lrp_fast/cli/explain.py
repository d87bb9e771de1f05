"""What `attribute` and `graph` share: from the options to an attribution."""

from __future__ import annotations

import argparse
import re
import sys

from tqdm import tqdm

from .load import load
from .prompt import _read_prompt


def explain(options: argparse.Namespace, graph=None):
    """What `lrp_fast.attribute` makes of the options of `add_decision`, with its progress on stderr."""
    prompt = _read_prompt(options)
    target = None if options.target is None else read_token(options.target)
    contrast = read_contrast(options.contrast)

    from .. import Memory, attribute, plan
    from ..prompt import read

    print(f"loading {options.model}", file=sys.stderr)
    model, tokenizer = load(options)
    given = read([{"role": "user", "content": prompt}] if options.chat else prompt, tokenizer)
    memory = Memory(options.device_budget, options.host_budget, options.offload_dir)
    planned = plan(model, len(given.ids), rule=options.rule, memory=memory, graph=graph)
    forward = planned.forward_flops / (planned.forward_flops + planned.replay_flops + planned.backward_flops)
    shown = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    # disable=None: off where nobody watches.
    with tqdm(total=1.0, bar_format=shown, file=sys.stderr, leave=False, disable=None) as bar:

        def progress(phase: str, done: int, layers: int) -> None:
            share = done / layers
            bar.n = forward * share if phase == "forward" else forward + (1 - forward) * share
            bar.set_description(f"{phase}, layer {done} of {layers}", refresh=False)
            bar.refresh()

        return attribute(
            model,
            given,
            target=target,
            contrast=contrast,
            position=options.position,
            rule=options.rule,
            graph=graph,
            memory=memory,
            tokenizer=tokenizer,
            progress=progress,
            tolerance=options.tolerance,
        )


def read_spec(options: argparse.Namespace):
    """What `add_building` asks for."""
    from ..graph import GraphSpec

    return GraphSpec(
        topk=options.topk,
        mass=options.mass,
        node_threshold=options.node_threshold,
        absolute=options.absolute,
        layers=options.layers,
    )


def read_token(text: str) -> int | str:
    """A token as the command line spells it: id:N, or the string itself."""
    match = re.fullmatch(r"id:(\d+)", text)
    return int(match[1]) if match else text


def read_contrast(text: str):
    """As `read_token`, or mean, top:K or none."""
    if text in ("mean", "none"):
        return {"mean": "mean", "none": None}[text]
    match = re.fullmatch(r"top:(\d+)", text)
    return ("top", int(match[1])) if match else read_token(text)
