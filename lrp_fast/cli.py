"""The command line: ``lrp-fast attribute``, ``lrp-fast graph``, ``lrp-fast plan`` and ``lrp-fast doctor``.

Results go to stdout, progress to stderr; the exit status is 0, 1 (failed), 2 (asked wrongly) or 130 (interrupted).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from tqdm import tqdm

_EXAMPLES = """\
examples:
  lrp-fast attribute HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The capital of Australia is"
      shows the ten best next tokens and explains the first against the second
  lrp-fast attribute ./my-model --prompt-file case.txt --target " Sydney" --contrast " Canberra" --out case
      explains a wrong answer against the right one; writes case.html, case.json and case.safetensors
  lrp-fast graph ./my-model --prompt-file case.txt --html route.html --save route.safetensors
      shows by which route that preference came about; route.html is a picture of it
  lrp-fast plan meta-llama/Llama-3.1-70B --tokens 100000 --device-budget 60GB
      would it fit? Reads the model's config.json only, and runs nothing
  lrp-fast doctor Qwen/Qwen3-30B-A3B
      is it covered? Reads config.json only, and tries the rules on a small random copy
"""

# What goes into a graph when it is built, so that a graph file has no use for it.
_BUILDING = [
    *("prompt", "prompt_file", "chat", "target", "contrast", "position", "rule", "device", "dtype"),
    *("device_budget", "host_budget", "offload_dir", "topk", "mass", "node_threshold", "absolute", "layers"),
]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a token is anything: no terminal's encoding may fail on it
        stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("lrp-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError) as error:  # lrp_fast's own words for input that cannot be honoured
        print(f"lrp-fast: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough; Python must not complain of it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError) as error:
        print(f"lrp-fast: failed: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lrp-fast",
        description="Explain why a language model preferred one token over another.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXAMPLES,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "attribute",
        help="distribute one decision over the prompt's tokens and every hidden state",
        description="Distribute a logit difference over the input tokens and hidden states of a Hugging Face model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXAMPLES,
    )
    command.set_defaults(run=_attribute)
    command.add_argument("model", help="a model directory, or a name on the Hugging Face hub")
    _add_decision(command, required=True)
    command.add_argument("--top", type=_count, default=10, metavar="K", help="tokens in the table (10)")
    command.add_argument(
        "--out", type=Path, default=Path("attribution"), metavar="NAME",
        help="write NAME.html, NAME.json and NAME.safetensors (attribution)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    _add_dtype_and_memory(command)

    command = commands.add_parser(
        "graph",
        help="show by which route a decision came about: from which token, at which layer, to which",
        description="Build the graph whose edges carry relevance from one hidden state to those of the next layer, or\n"
        "take one from a file. Prune it, print what is left and the best paths, and write it where an\n"
        "option says so.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXAMPLES,
    )
    command.add_argument("model", help="a model directory, a name on the hub, or a graph file, NAME.safetensors")
    _add_decision(command, required=False)
    _add_building(command, "16, unless --mass")
    _add_dtype_and_memory(command)
    shown = command.add_argument_group("what is kept, shown and written")
    shown.add_argument(
        "--prune",
        type=_pruning,
        metavar="HOW",
        help="influence:NODES,EDGES (shares of the influence on the decision), mass:P (of each layer's |weight|), "
        "threshold:X (edges above X) or none; if left out, influence:0.8,0.98, and none for a graph file",
    )
    shown.add_argument("--paths", type=_count, default=5, metavar="K", help="best paths in the table (5)")
    shown.add_argument("--save", type=Path, metavar="FILE", help="write what was kept as a graph file, .safetensors")
    shown.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at; it opens offline")
    shown.add_argument("--node-link", type=Path, metavar="FILE", help="write JSON as networkx and d3 read it")
    shown.add_argument(
        "--neuronpedia", type=Path, metavar="FILE", help="write the JSON that Neuronpedia and circuit-tracer open"
    )
    shown.add_argument("--json", action="store_true", help="print counts, paths and measures as JSON, not as a table")
    command.set_defaults(run=_graph, defaults={name: command.get_default(name) for name in _BUILDING})

    command = commands.add_parser(
        "plan",
        help="say what an attribution would take, before anything runs",
        description="Reckon memory and operations of an attribution from a model's config.json: no weights are read.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXAMPLES,
    )
    command.set_defaults(run=_plan)
    command.add_argument("model", help="a model directory, or a name on the Hugging Face hub")
    command.add_argument("--tokens", type=_count, required=True, metavar="N", help="length of the context")
    command.add_argument("--targets", type=_count, default=1, metavar="T", help="targets explained at once (1)")
    command.add_argument("--rule", default="attnlrp", choices=("attnlrp", "cp", "gradient"), help="propagation rule")
    command.add_argument("--json", action="store_true", help="print the plan as JSON instead of a table")
    command.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="where it would run (cuda)")
    _add_building(command, "no graph, unless --mass")
    _add_dtype_and_memory(command)

    command = commands.add_parser(
        "doctor",
        help="say which parts of a model are covered by which rule, and check the rules on a small copy",
        description="List a model's module classes with the rule that covers each, from config.json alone, and check\n"
        "the rules' identities on a small random copy of the architecture, in float64 on the CPU.\n"
        "Exit status 1 if something is not covered or a check fails.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EXAMPLES,
    )
    command.set_defaults(run=_doctor)
    command.add_argument("model", help="a model directory, or a name on the Hugging Face hub")
    command.add_argument("--json", action="store_true", help="print the findings as JSON instead of a table")
    return parser


def _add_decision(command: argparse.ArgumentParser, required: bool) -> None:
    """What is explained, by which rule, and where that runs."""
    prompt = command.add_mutually_exclusive_group(required=required)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="a UTF-8 file that holds the prompt (one newline at its end is not part of it); - for standard input",
    )
    command.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template first")
    command.add_argument(
        "--target",
        metavar="TOKEN",
        help="the token to explain: a string, or id:N; the model's own first choice if left out",
    )
    command.add_argument(
        "--contrast",
        metavar="TOKEN",
        default="top:1",
        help="what it is compared with: a string, id:N, mean (of all logits), top:K (mean of the K best others) "
        "or none (the plain logit); the best other token if left out",
    )
    command.add_argument(
        "--position",
        type=int,
        default=-1,
        metavar="I",
        help="whose next token is meant: an index into the prompt (-1: the last)",
    )
    command.add_argument("--rule", default="attnlrp", choices=("attnlrp", "cp", "gradient"), help="propagation rule")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def _add_building(command: argparse.ArgumentParser, default: str) -> None:
    """Which edges a graph is built of; ``default`` says what --topk is where it is left out."""
    built = command.add_argument_group("what is built")
    kept = built.add_mutually_exclusive_group()
    kept.add_argument(
        "--topk", type=_count, metavar="K", help=f"the K strongest edges into each hidden state ({default})"
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
    built.add_argument("--layers", type=_layers, metavar="L", help="only the edges of these layers, such as 0-3,7")


def _add_dtype_and_memory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="float32 on a CPU, else the model's own",
    )
    command.add_argument(
        "--device-budget", type=_bytes, metavar="SIZE", help="memory above the model on each CUDA device, such as 60GB"
    )
    command.add_argument(
        "--host-budget", type=_bytes, metavar="SIZE", help="host memory above the model; on a CPU that of all the work"
    )
    command.add_argument(
        "--offload-dir", metavar="DIR", help="a folder for what fits neither (default: the system's temporary folder)"
    )


def _attribute(options: argparse.Namespace) -> int:
    _check_files("--out", options.out, _SUFFIXES)
    result = _explain(options)

    from .files import write_atomically
    from .report.html import write_html
    from .report.record import as_json
    from .report.table import best_table, table

    record = json.dumps(as_json(result), ensure_ascii=False, allow_nan=False)
    page, plain, saved = (_beside(options.out, suffix) for suffix in _SUFFIXES)
    result.save(saved)
    write_atomically(plain, (record + "\n").encode("utf-8", "backslashreplace"))
    write_html(result, page)
    if options.json:
        print(record)
    else:
        if options.target is None:
            print(best_table(result.explained), end="\n\n")
        print(table(result, options.top))
    print(f"wrote {page}, {plain}, {saved}", file=sys.stderr)
    return 0


def _graph(options: argparse.Namespace) -> int:
    outputs = {name: getattr(options, name) for name in ("save", "html", "node_link", "neuronpedia")}
    files = {name: path for name, path in outputs.items() if path is not None}
    for name, path in files.items():
        _check_files("--" + name.replace("_", "-"), path)
    if options.save and options.save.suffix != ".safetensors":
        raise ValueError(f"--save {options.save} would not be known as a graph file: let its name end in .safetensors")
    if len(set(files.values())) < len(files):
        raise ValueError("two outputs have one name: each needs a file of its own")

    from .files import write_atomically
    from .report.graph import as_json, table
    from .report.graph_html import write_graph_html

    is_file = options.model.endswith(".safetensors")
    whole = _read_graph(options) if is_file else _build_graph(options)
    words, pruning = options.prune or _pruning("none" if is_file else "influence:0.8,0.98")
    kept = whole.prune(**pruning) if pruning else whole
    paths = kept.paths(options.paths)

    def write_json(path: Path, data: dict) -> None:
        write_atomically(path, json.dumps(data, allow_nan=False).encode("ascii"))

    if options.save:
        kept.save(options.save)
    if options.html:
        write_graph_html(kept, options.html)
    if options.json:
        print(json.dumps(as_json(whole, kept, paths), ensure_ascii=False, allow_nan=False))
    else:
        print(table(whole, kept, paths, words))
    if options.node_link:  # these two come last: they refuse a graph of millions of edges
        write_json(options.node_link, kept.to_node_link())
    if options.neuronpedia:
        write_json(options.neuronpedia, kept.to_attribution_graph(options.neuronpedia.stem))
    if files:
        print(f"wrote {', '.join(map(str, files.values()))}", file=sys.stderr)
    return 0


def _read_graph(options: argparse.Namespace):
    from .graph import Graph

    given = [name for name, default in options.defaults.items() if getattr(options, name) != default]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ValueError(f"{option} is for building a graph, and {options.model} is one: leave it out, or name a model")
    try:
        return Graph.load(options.model)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _build_graph(options: argparse.Namespace):
    if options.prompt is None and options.prompt_file is None:
        raise ValueError("give --prompt or --prompt-file with a model; without them, a graph file, NAME.safetensors")
    if options.topk is None and options.mass is None:
        options.topk = 16
    return _explain(options, _read_spec(options)).graph


def _read_spec(options: argparse.Namespace):
    """What `_add_building` asks for."""
    from .graph import GraphSpec

    return GraphSpec(
        topk=options.topk,
        mass=options.mass,
        node_threshold=options.node_threshold,
        absolute=options.absolute,
        layers=options.layers,
    )


def _explain(options: argparse.Namespace, graph=None):
    """What `lrp_fast.attribute` makes of the options of `_add_decision`, with its progress on stderr."""
    prompt = _read_prompt(options)
    target = None if options.target is None else _read_token(options.target)
    contrast = _read_contrast(options.contrast)

    import transformers

    from . import Memory, attribute, plan

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"loading {options.model}", file=sys.stderr)
    model, tokenizer = _load(transformers, options)
    if options.chat:
        prompt = _in_chat_template(prompt, tokenizer)
        ids = tokenizer.encode(prompt, add_special_tokens=False)  # the template writes its own special tokens
    else:
        ids = tokenizer.encode(prompt)

    memory = Memory(options.device_budget, options.host_budget, options.offload_dir)
    # `attribute` refuses an empty prompt.
    planned = plan(model, max(1, len(ids)), rule=options.rule, memory=memory, graph=graph)
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
            ids,
            target=target,
            contrast=contrast,
            position=options.position,
            rule=options.rule,
            graph=graph,
            memory=memory,
            tokenizer=tokenizer,
            progress=progress,
        )


def _plan(options: argparse.Namespace) -> int:
    import torch
    import transformers

    from . import Memory, plan
    from .hf import language_model_class

    config = _read_config(transformers, options)
    dtype = options.dtype or ("float32" if options.device == "cpu" else config.dtype or "float32")
    model_class = language_model_class(config)
    if model_class is None:
        raise ValueError(f"transformers has no causal language model for a {type(config).__name__}: nothing to plan")
    with torch.device("meta"):
        model = model_class._from_config(config, dtype=dtype)
    memory = Memory(options.device_budget, options.host_budget, options.offload_dir)
    graph = None if options.topk is None and options.mass is None else _read_spec(options)
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


def _doctor(options: argparse.Namespace) -> int:
    import transformers

    from .doctor import examine
    from .hf import unreadable_format
    from .report.findings import findings

    config = _read_config(transformers, options)
    weights = unreadable_format(config)
    found, checks = examine(config)
    healthy = weights is None and bool(checks) and all(check.passed for check in checks)
    if options.json:
        told = {"modules": [one._asdict() for one in found], "checks": [one._asdict() for one in checks]}
        print(json.dumps(told | {"weights": weights, "healthy": healthy}))
    else:
        print(findings(found, weights, checks))
    return 0 if healthy else 1


def _read_config(transformers, options: argparse.Namespace):
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(options.model)
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read the config of {options.model!r}: {why}") from error
    if getattr(config, "quantization_config", None) is not None:
        print(f"{options.model} is quantised: what follows is about the same model in floats", file=sys.stderr)
    return config


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of tokens: give 1 or more")
    return value


def _bytes(text: str) -> int:
    """A size as people write it: 800MB, 60 GB, 1.5TiB, or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B|B?)", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 800MB, 60GB or a number of bytes")
    number, unit, binary = match.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def _layers(text: str) -> list[int]:
    """Layers as people write them: 0-3,7."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        several = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not several:
            raise argparse.ArgumentTypeError(f"{text!r} names no layers: write 0-3,7")
        found += several
    return found


def _pruning(text: str) -> tuple[str, dict]:
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


_SUFFIXES = (".html", ".json", ".safetensors")  # of what attribute writes


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _read_prompt(options: argparse.Namespace) -> str:
    if options.prompt is not None:
        if any("\ud800" <= sign <= "\udfff" for sign in options.prompt):
            raise ValueError("--prompt is no text in this locale's encoding: use a UTF-8 locale, or --prompt-file")
        return options.prompt
    try:
        data = sys.stdin.buffer.read() if options.prompt_file == "-" else Path(options.prompt_file).read_bytes()
        return data.decode("utf-8").removesuffix("\n")  # editors and echo end a file so
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt in {options.prompt_file} is no UTF-8 text: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read the prompt: {error}") from error


def _read_token(text: str) -> int | str:
    """A token as the command line spells it: id:N, or the string itself."""
    match = re.fullmatch(r"id:(\d+)", text)
    return int(match[1]) if match else text


def _read_contrast(text: str):
    """As `_read_token`, or mean, top:K or none."""
    if text in ("mean", "none"):
        return {"mean": "mean", "none": None}[text]
    match = re.fullmatch(r"top:(\d+)", text)
    return ("top", int(match[1])) if match else _read_token(text)


def _check_files(option: str, out: Path, suffixes: tuple[str, ...] = ("",)) -> None:
    """Before anything is computed for it: an option must name files that can be written."""
    mend = f"name {'files' if len(suffixes) > 1 else 'a file'} with {option} in a folder that exists and can be written"
    if out.name in ("", "..") or any(_beside(out, suffix).is_dir() for suffix in suffixes):
        raise ValueError(f"{option} {out} names no file: {mend}")
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=out.name, suffix=suffixes[-1]):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {_beside(out, suffixes[-1])} ({error.strerror}): {mend}") from error


def _load(transformers, options: argparse.Namespace):
    import torch

    from .hf import language_model_class

    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from error
    dtype = options.dtype or ("float32" if device.type == "cpu" else "auto")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        config = transformers.AutoConfig.from_pretrained(options.model)
        model_class = language_model_class(config) or transformers.AutoModelForCausalLM  # which says why it has none
        model, loading = model_class.from_pretrained(
            options.model, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load {options.model!r}: {why}") from error
    incomplete = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if incomplete:  # transformers fills these with random numbers
        raise ValueError(
            f"the weights in {options.model!r} lack {len(incomplete)} that the model has, {incomplete[0]} first: "
            "explaining random weights helps nobody; complete the checkpoint"
        )
    return model.to(device).eval(), tokenizer


def _in_chat_template(prompt: str, tokenizer) -> str:
    if not tokenizer.chat_template:
        raise ValueError("--chat: this model's tokenizer has no chat template; leave it out")
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


if __name__ == "__main__":
    sys.exit(main())
