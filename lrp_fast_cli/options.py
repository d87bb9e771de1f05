"""Options that several commands share, and how the words given to them are read."""

from __future__ import annotations

import argparse
import re
import sys


def add_decision(command: argparse.ArgumentParser, required: bool) -> None:
    """What is explained, by which rule, and where that runs."""
    prompt = command.add_mutually_exclusive_group(required=required)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="a file that holds the prompt, - for standard input: UTF-8, or UTF-16 or UTF-32 with a byte-order mark; "
        "the mark and one line end at the file's end are not part of the prompt, and where all line ends are CR LF "
        "(Windows) they are read as LF",
    )
    command.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template first")
    command.add_argument(
        "--target",
        metavar="TOKEN",
        help="the token to explain, or the label of a model that classifies: a string, or id:N; the model's own first "
        "choice if left out",
    )
    command.add_argument(
        "--answer",
        metavar="TEXT",
        help="in place of a target, a whole answer behind the prompt: the sum over its tokens is explained; with "
        "another answer as the contrast, the difference where the two diverge",
    )
    command.add_argument(
        "--contrast",
        metavar="TOKEN",
        help="what it is compared with: a string, id:N, mean (of all logits), top:K (mean of the K best others) "
        "or none (the plain logit); the best other one if left out (none, where a model gives one score)",
    )
    command.add_argument("--logprob", action="store_true", help="explain log-probabilities, which take no contrast")
    command.add_argument(
        "--position",
        type=int,
        default=-1,
        metavar="I",
        help="whose next token, or label, is meant: an index into the prompt (-1: the last; of a masked language model "
        "the one mask token, whose own position is meant)",
    )
    add_running(command)


def add_running(command: argparse.ArgumentParser) -> None:
    """By which rule, how exactly, and where."""
    command.add_argument("--rule", default="attnlrp", choices=("attnlrp", "cp", "gradient"), help="propagation rule")
    command.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the attention's mass that a layer's backward pass may leave out, such as 0.01 (0: exact)",
    )
    add_device(command)


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="a model directory, or a name on the Hugging Face hub")


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def add_dtype(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="float32 on a CPU, else the model's own"
    )


def add_building(command: argparse.ArgumentParser, default: str) -> None:
    """Which edges a graph is built of; ``default`` says what --topk is where it is left out."""
    built = command.add_argument_group("what is built")
    kept = built.add_mutually_exclusive_group()
    kept.add_argument(
        "--topk", type=count, metavar="K", help=f"the K strongest edges into each hidden state ({default})"
    )
    kept.add_argument(
        "--mass", type=float, metavar="P", help="a layer's strongest edges that hold this share of all its |weight|"
    )
    built.add_argument(
        "--node-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="only edges into states whose |relevance| is at least X of what is explained (0: all)",
    )
    built.add_argument("--absolute", action="store_true", help="X is in units of relevance, logits as a rule")
    built.add_argument("--layers", type=layers, metavar="L", help="only the edges of these layers, such as 0-3,7")


def add_dtype_and_memory(command: argparse.ArgumentParser) -> None:
    add_dtype(command)
    command.add_argument(
        "--device-budget", type=size, metavar="SIZE", help="memory above the model on each CUDA device, such as 60GB"
    )
    command.add_argument(
        "--host-budget", type=size, metavar="SIZE", help="host memory above the model; on a CPU that of all the work"
    )
    command.add_argument(
        "--offload-dir", metavar="DIR", help="a folder for what fits neither (default: the system's temporary folder)"
    )


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: give 1 or more")
    return value


def span(text: str) -> range:
    """Positions as START:END, the last one left out; -20: are the last twenty."""
    match = re.fullmatch(r"(-?\d+):(-?\d+)?", text)
    start, end = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if match is None or (start >= 0 and match[2] is None) or not (start < end and (start >= 0 or end <= 0)):
        raise argparse.ArgumentTypeError(f"{text!r} is no span of positions: write START:END, such as 58:94, or =-36:")
    return range(start, end)


def size(text: str) -> int:
    """A size as people write it: 800MB, 60 GB, 1.5TiB, or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B|B?)", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 800MB, 60GB or a number of bytes")
    number, unit, binary = match.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def layers(text: str) -> list[int]:
    """Layers as people write them: 0-3,7."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        several = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not several:
            raise argparse.ArgumentTypeError(f"{text!r} names no layers: write 0-3,7")
        found += several
    return found


def pruning(text: str) -> tuple[str, dict]:
    """What was asked for, and the arguments of `Graph.prune`; none of them for "none"."""
    if text == "none":
        return "not pruned", {}
    name, _, numbers = text.partition(":")
    try:
        values = tuple(map(float, numbers.split(",")))
    except ValueError:
        values = ()
    least, most = (0, sys.float_info.max) if name == "threshold" else (sys.float_info.min, 1)
    fits = all(least <= value <= most for value in values)  # asked now: a pass over the model comes first
    if len(values) != {"influence": 2, "mass": 1, "threshold": 1}.get(name) or not fits:
        raise argparse.ArgumentTypeError(f"{text!r} is no pruning: write influence:0.8,0.98, mass:0.85, threshold:0.01")
    return f"{name} {numbers.replace(',', ', ')}", {name: values if len(values) > 1 else values[0]}
