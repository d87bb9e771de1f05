"""The command line: ``lrp-fast attribute`` and ``lrp-fast plan``.

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
  lrp-fast plan meta-llama/Llama-3.1-70B --tokens 100000 --device-budget 60GB
      would it fit? Reads the model's config.json only, and runs nothing
"""


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
    prompt = command.add_mutually_exclusive_group(required=True)
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
    command.add_argument("--top", type=_count, default=10, metavar="K", help="tokens in the table (10)")
    command.add_argument(
        "--out", type=Path, default=Path("attribution"), metavar="NAME",
        help="write NAME.html, NAME.json and NAME.safetensors (attribution)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    _add_dtype_and_memory(command)

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
    _add_dtype_and_memory(command)
    return parser


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
    prompt = _read_prompt(options)
    target = None if options.target is None else _read_token(options.target)
    contrast = _read_contrast(options.contrast)
    _check_out(options.out)

    import transformers

    from . import Memory, attribute, plan
    from .files import write_atomically
    from .report.html import write_html
    from .report.record import as_json
    from .report.table import best_table, table

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
    planned = plan(model, max(1, len(ids)), rule=options.rule, memory=memory)  # `attribute` refuses an empty prompt
    forward = planned.forward_flops / (planned.forward_flops + planned.replay_flops + planned.backward_flops)
    shown = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    # disable=None: off where nobody watches.
    with tqdm(total=1.0, bar_format=shown, file=sys.stderr, leave=False, disable=None) as bar:

        def progress(phase: str, done: int, layers: int) -> None:
            share = done / layers
            bar.n = forward * share if phase == "forward" else forward + (1 - forward) * share
            bar.set_description(f"{phase}, layer {done} of {layers}", refresh=False)
            bar.refresh()

        result = attribute(
            model,
            ids,
            target=target,
            contrast=contrast,
            position=options.position,
            rule=options.rule,
            memory=memory,
            tokenizer=tokenizer,
            progress=progress,
        )

    record = json.dumps(as_json(result), ensure_ascii=False, allow_nan=False)
    result.save(_beside(options.out, ".safetensors"))
    write_atomically(_beside(options.out, ".json"), (record + "\n").encode("utf-8", "backslashreplace"))
    write_html(result, _beside(options.out, ".html"))
    if options.json:
        print(record)
    else:
        if options.target is None:
            print(best_table(result.explained), end="\n\n")
        print(table(result, options.top))
    written = ", ".join(str(_beside(options.out, suffix)) for suffix in (".html", ".json", ".safetensors"))
    print(f"wrote {written}", file=sys.stderr)
    return 0


def _plan(options: argparse.Namespace) -> int:
    import torch
    import transformers

    from . import Memory, plan

    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(options.model)
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read the config of {options.model!r}: {why}") from error
    dtype = options.dtype or ("float32" if options.device == "cpu" else config.dtype or "float32")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    memory = Memory(options.device_budget, options.host_budget, options.offload_dir)
    planned = plan(
        model, options.tokens, rule=options.rule, memory=memory, targets=options.targets, device=options.device
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(planned)))
    else:
        dtype = str(model.dtype).removeprefix("torch.")
        print(f"{options.tokens:,} tokens of {options.model}, {dtype}, rule {options.rule}")
        print(planned)
    return 0


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


def _check_out(out: Path) -> None:
    """Before anything is computed for it: --out must name files that can be written."""
    mend = "name files with --out in a folder that exists and can be written"
    if out.name in ("", "..") or any(_beside(out, suffix).is_dir() for suffix in (".html", ".json", ".safetensors")):
        raise ValueError(f"--out {out} names no file: {mend}")
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=out.name, suffix=".safetensors"):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {_beside(out, '.safetensors')} ({error.strerror}): {mend}") from error


def _load(transformers, options: argparse.Namespace):
    import torch

    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from error
    dtype = options.dtype or ("float32" if device.type == "cpu" else "auto")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
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
