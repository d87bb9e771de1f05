"""What can be asked for: the options of every command, and its help."""

from __future__ import annotations

import argparse
from pathlib import Path

from .evaluate import add_evaluate
from .options import add_building, add_decision, add_dtype_and_memory, add_model, count, pruning, span
from .study import add_study

EXAMPLES = """\
examples:
  lrp-fast attribute HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The capital of Australia is"
      shows the ten best next tokens and explains the first against the second
  lrp-fast attribute ./my-model --prompt-file case.txt --target " Sydney" --contrast " Canberra" --out case
      explains a wrong answer against the right one; writes case.html, case.json and case.safetensors
  lrp-fast graph ./my-model --prompt-file case.txt --html route.html --save route.safetensors
      shows by which route that preference came about; route.html is a picture of it
  lrp-fast hops ./my-model --prompt-file with-thoughts.txt --generated 58:94 --answer " 12"
      shows what in the prompt made the model write the thoughts (tokens 58 to 93) that the answer rests on
  lrp-fast ablate ./my-model --prompt-file case.txt --cut '{"sources": {"doc": "Sydney has a large harbour."}}'
      cuts that sentence out, and shows what becomes of the preference, and of the best next tokens
  lrp-fast study run ./my-model cases.jsonl --out run
      explains every case of a file, one a line; killed, the same command goes on where it was
  lrp-fast study compare run-small run-large --out compared
      what changes from one to the other: tables, plots, and the cases that flip
  lrp-fast study page run
      writes pages of it: plots, a table of the cases to be sorted and filtered, and a page of each
  lrp-fast evaluate ./my-model --cases cases.jsonl --methods attnlrp cp random --protocols flip recovery --out judged
      is the explanation true? Perturbs each prompt as each method says, and compares what the model does then
  lrp-fast plan meta-llama/Llama-3.1-70B --tokens 100000 --device-budget 60GB
      would it fit? Reads the model's config.json only, and runs nothing
  lrp-fast doctor Qwen/Qwen3-30B-A3B
      is it covered? Reads config.json only, and tries the rules on a small random copy
  lrp-fast doctor --device cuda
      the first thing to do on a machine with a GPU: are results computed on it right?
  lrp-fast tune
      the second one: which kernels and tiles are fastest on it? They are used from then on
"""

# What goes into a graph when it is built, so that a graph file has no use for it.
BUILDING = [
    *("prompt", "prompt_file", "chat", "target", "answer", "contrast", "logprob", "position", "rule", "tolerance"),
    *("device", "dtype", "device_budget", "host_budget", "offload_dir"),
    *("topk", "mass", "node_threshold", "absolute", "layers"),
]


def build() -> argparse.ArgumentParser:
    """The parser of ``lrp-fast``: one sub-parser a command; ``command`` is its name."""
    parser = argparse.ArgumentParser(
        prog="lrp-fast",
        description="Explain why a language model preferred one token over another.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "attribute",
        help="distribute one decision over the prompt's tokens and every hidden state",
        description="Distribute a logit difference over the input tokens and hidden states of a Hugging Face model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    add_model(command)
    add_decision(command, required=True)
    command.add_argument("--top", type=count, default=10, metavar="K", help="tokens in the table (10)")
    command.add_argument(
        "--by-token", action="store_true",
        help="explain each token of --answer by itself: the page lets you choose, the JSON is a list, and each has a "
        ".safetensors file, NAME-1, NAME-2, ...",
    )  # fmt: skip
    command.add_argument(
        "--sources", type=Path, metavar="FILE",
        help='a JSON object that names parts of the prompt, whose relevance is added up: {"NAME": "text that stands in '
        'it once", or ["chars", START, END], or [START, END] of tokens, or a list of such}',
    )  # fmt: skip
    command.add_argument(
        "--heads", type=count, nargs="?", const=10, metavar="K",
        help="show the K strongest attention heads too (10), and by what they pass relevance on: queries and keys (why "
        "a head attends), values (what it carries)",
    )  # fmt: skip
    command.add_argument(
        "--neurons", type=count, nargs="?", const=10, metavar="K", help="show the K strongest MLP neurons too (10)"
    )
    command.add_argument(
        "--lens", action="store_true",
        help="show the logit lens too: the score that each layer's output would have if it were the last one's, and "
        "the layer from which on its sign stays",
    )  # fmt: skip
    command.add_argument(
        "--out", type=Path, default=Path("attribution"), metavar="NAME",
        help="write NAME.html, NAME.json and NAME.safetensors (attribution)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    add_dtype_and_memory(command)

    command = commands.add_parser(
        "graph",
        help="show by which route a decision came about: from which token, at which layer, to which",
        description="Build the graph whose edges carry relevance from one hidden state to those of the next layer, or\n"
        "take one from a file. Prune it, print what is left and the best paths, and write it where an\n"
        "option says so.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument("model", help="a model directory, a name on the hub, or a graph file, NAME.safetensors")
    add_decision(command, required=False)
    add_building(command, "16, unless --mass")
    add_dtype_and_memory(command)
    shown = command.add_argument_group("what is kept, shown and written")
    shown.add_argument(
        "--prune",
        type=pruning,
        metavar="HOW",
        help="influence:NODES,EDGES (shares of the influence on the decision), mass:P (of each layer's |weight|), "
        "threshold:X (edges above X) or none; if left out, influence:0.8,0.98, and none for a graph file",
    )
    shown.add_argument("--paths", type=count, default=5, metavar="K", help="best paths in the table (5)")
    shown.add_argument("--save", type=Path, metavar="FILE", help="write what was kept as a graph file, .safetensors")
    shown.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at; it opens offline")
    shown.add_argument("--node-link", type=Path, metavar="FILE", help="write JSON as networkx and d3 read it")
    shown.add_argument(
        "--neuronpedia", type=Path, metavar="FILE", help="write the JSON that Neuronpedia and circuit-tracer open"
    )
    shown.add_argument("--json", action="store_true", help="print counts, paths and measures as JSON, not as a table")
    command.set_defaults(defaults={name: command.get_default(name) for name in BUILDING})

    command = commands.add_parser(
        "hops",
        help="send the relevance of generated tokens, such as a chain of thought, on to the prompt",
        description="Explain a decision by the prompt, through tokens that the model had generated on the way to it.\n"
        "What the first pass brings to generated tokens, a hop sends on: it explains why they were written, each\n"
        "by the relevance that it received, in one pass for all. Printed are what each pass explained, brought to\n"
        "all tokens and left on generated ones, and the strongest of the other tokens, over all passes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    add_model(command)
    add_decision(command, required=True)
    command.add_argument(
        "--generated", type=span, required=True, metavar="START:END",
        help="which of the tokens were generated: positions from START up to, but not including, END, from 0, as "
        "`lrp-fast attribute` shows them; --generated=-36: are the last 36",
    )  # fmt: skip
    command.add_argument(
        "--bound", type=float, default=0.01, metavar="X",
        help="hops end when at most this share of the first pass's |relevance| is left on generated tokens (0.01)",
    )  # fmt: skip
    command.add_argument("--most", type=int, default=8, metavar="N", help="hops at most (8)")
    command.add_argument("--top", type=count, default=10, metavar="K", help="tokens in the table (10)")
    command.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    add_dtype_and_memory(command)

    command = commands.add_parser(
        "ablate",
        help="cut a part of the model's computation, and see what becomes of the decision",
        description="Cut tokens, hidden states, edges of the attention, heads or neurons, and ask the same question\n"
        "again. Printed are its value before and after, the change that relevance predicts (of tokens, sources,\n"
        "hidden states of a layer, set to zero, and edges of a layer), and the best next tokens of both.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    add_model(command)
    add_decision(command, required=True)
    command.add_argument(
        "--cut", required=True, metavar="JSON",
        help='a JSON object, or a file that holds one, of lists: "tokens": [POSITION, ...], "nodes": [[LAYER, '
        'POSITION], ...], "edges": [[LAYER, SOURCE, TARGET], ...] (or [LAYER, SOURCE, TARGET, HEAD]), "heads": '
        '[[LAYER, HEAD], ...], "neurons": [[LAYER, NEURON], ...]; and "sources": {NAME: "text that stands in the '
        'prompt once", ...}, spans as in `lrp-fast attribute --sources`. All count from 0; negative positions from '
        'the end',
    )  # fmt: skip
    command.add_argument(
        "--replacement", default="zero", metavar="HOW",
        help="what stands in for what is cut: zero (the default), mean (over the prompt's positions), or another "
        "prompt of as many tokens, whose own; edges take none",
    )  # fmt: skip
    command.add_argument(
        "--no-prediction", action="store_true", help="leave out the attribution that the predicted change is read from"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    add_dtype_and_memory(command)

    add_study(commands, EXAMPLES)
    add_evaluate(commands, EXAMPLES)

    command = commands.add_parser(
        "plan",
        help="say what an attribution would take, before anything runs",
        description="Reckon memory and operations of an attribution from a model's config.json: no weights are read.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    add_model(command)
    command.add_argument("--tokens", type=count, required=True, metavar="N", help="length of the context")
    command.add_argument("--targets", type=count, default=1, metavar="T", help="targets explained at once (1)")
    command.add_argument("--rule", default="attnlrp", choices=("attnlrp", "cp", "gradient"), help="propagation rule")
    command.add_argument("--json", action="store_true", help="print the plan as JSON instead of a table")
    command.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="where it would run (cuda)")
    add_building(command, "no graph, unless --mass")
    add_dtype_and_memory(command)

    command = commands.add_parser(
        "doctor",
        help="check a model (which rule covers which part of it), this machine's GPU (are its results right), or both",
        description="With a MODEL: list its module classes with the rule that covers each, from config.json alone,\n"
        "and check the rules' identities on a small random copy of the architecture, in float64 on the CPU.\n"
        "With --device: run every operation that lrp_fast is made of on that device, as it will be run there,\n"
        "and hold it against its definition, within what rounding explains; two calls have to give the same\n"
        "bits. On a GPU, about a hundred kernels are compiled the first time, in a minute or less.\n"
        "With both, attention is tried at the model's own head_dim. Exit status 1 if something is not covered or\n"
        "a check fails.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument("model", nargs="?", help="a model directory, or a name on the Hugging Face hub")
    command.add_argument("--device", help="check the operations there: cuda, cuda:1, ... or cpu")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of what they work on (bfloat16; on a CPU float32)"
    )
    command.add_argument(
        "--impl",
        choices=("auto", "triton", "torch"),
        help="who computes: what is chosen there (auto, the default), Triton's kernels, or PyTorch, with the C++ "
        "core on x86 CPUs",
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON instead of a table")

    command = commands.add_parser(
        "tune",
        help="measure which kernels and tiles are fastest on this machine's GPU, and use them from then on",
        description="Time the tiles of Triton's kernels, and PyTorch's own attention beside them, on a CUDA device:\n"
        "what is fastest there is used from then on. Nothing is timed before its results were checked. It takes\n"
        "two minutes at most, most important things first; when they are over, or after Ctrl-C, what was found\n"
        "is kept. It is written to one file a GPU, tuned-NAME.json in ~/.cache/lrp_fast (or in lrp_fast in\n"
        "$XDG_CACHE_HOME, where that is set): delete it to be as before. Other tiles add up in another order, so\n"
        "that the last bits of results may differ between a machine that was tuned and one that was not.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument(
        "model", nargs="?", help="tune for this one: a model directory, or a name on the hub; common sizes if left out"
    )
    command.add_argument("--device", default="cuda", help="cuda (default), cuda:1, ...")
    command.add_argument("--seconds", type=float, default=120.0, metavar="S", help="how long it may take (120)")
    command.add_argument("--rows", metavar="PATTERN", help="of tiles.json, such as 'dkv*, head_dim 128, *'")
    return parser
