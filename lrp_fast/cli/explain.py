"""From the options of `add_decision` to an attribution, and what other commands share of the way."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import contextmanager

from tqdm import tqdm

from .load import load
from .prompt import _read_prompt


def explain(options: argparse.Namespace, graph=None, sources=None, by_token: bool = False, observe=()):
    """What `lrp_fast.attribute` makes of the options, with its progress on stderr."""
    prompt, question = _read_prompt(options), read_question(options)
    model, tokenizer = loaded(options)
    given = read_tokens(options, prompt, tokenizer)
    return attributed(
        options, model, tokenizer, given, question, graph, sources=sources, by_token=by_token, observe=observe
    )


def attributed(options: argparse.Namespace, model, tokenizer, given, question: dict, graph=None, **more):
    """`lrp_fast.attribute` of a model and a prompt that are there."""
    from .. import attribute

    question = settled(options, model, question)
    with watched(options, model, given, graph) as shared:
        return attribute(model, given, **question, graph=graph, tokenizer=tokenizer, **shared, **more)


def read_question(options: argparse.Namespace) -> dict:
    """What is asked, by the names of the library's arguments."""
    if options.target is not None and options.answer is not None:
        raise ValueError("--target and --answer both say what is explained: give one of them")
    target, answer = (None if given is None else read_token(given) for given in (options.target, options.answer))
    usual = "none" if options.logprob else "top:1"
    contrast = read_contrast(usual if options.contrast is None else options.contrast)
    if options.logprob and contrast is not None:
        raise ValueError("--logprob takes no --contrast: two log-probabilities differ by what their logits differ by")
    if options.logprob and answer is not None:
        answer = ("logprob", answer)
    elif options.logprob:
        target = ("logprob", target)
    return {"target": target, "contrast": contrast, "position": options.position, "answer": answer}


def settled(options: argparse.Namespace, model, question: dict) -> dict:
    """The question as it is put to a model that is there: nothing is beside the one score that some give."""
    from ..hf import head_of

    return question | ({"contrast": None} if options.contrast is None and head_of(model).size == 1 else {})


def loaded(options: argparse.Namespace):
    """The model and its tokenizer, and a word of it on stderr."""
    print(f"loading {options.model}", file=sys.stderr)
    return load(options)


def read_tokens(options: argparse.Namespace, text: str, tokenizer):
    """A prompt's tokens, in the chat template where --chat says so."""
    from ..prompt import read

    return read([{"role": "user", "content": text}] if options.chat else text, tokenizer)


@contextmanager
def watched(options: argparse.Namespace, model, given, graph=None):
    """How a pass runs, by the names of the library's arguments; a bar on stderr shows how far it is."""
    from .. import Memory, plan

    memory = Memory(options.device_budget, options.host_budget, options.offload_dir)
    planned = plan(model, len(given.ids), rule=options.rule, memory=memory, graph=graph)
    forward = planned.forward_flops / (planned.forward_flops + planned.replay_flops + planned.backward_flops)
    shown = "{desc}{percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    # disable=None: off where nobody watches.
    with tqdm(total=1.0, bar_format=shown, file=sys.stderr, leave=False, disable=None) as bar:

        def progress(phase: str, done: int, layers: int) -> None:
            share = done / layers
            bar.n = forward * share if phase == "forward" else forward + (1 - forward) * share
            bar.set_description(f"{phase}, layer {done} of {layers}", refresh=False)
            bar.refresh()

        yield {"rule": options.rule, "memory": memory, "tolerance": options.tolerance, "progress": progress}


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
