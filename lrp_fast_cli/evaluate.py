"""The options of ``lrp-fast evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_device, add_dtype, add_model, count

METHODS = (
    "random", "position", "last_attention", "attention_rollout", "gradient", "abs_gradient", "integrated_gradients",
    "leave_one_out", "gim", "cp", "attnlrp",
)  # fmt: skip
PROTOCOLS = (
    "flip", "morf_lerf", "naopc", "mas", "disrupt_recover", "recovery", "agreement", "contextcite", "soft",
    "graph_cuts",
)  # fmt: skip
REPLACEMENTS = ("pad", "mask", "zero", "mean", "left out")
SETS = ("known_1000", "ioi", "squad_v2")


def add_evaluate(commands, epilog: str) -> None:
    command = commands.add_parser(
        "evaluate",
        help="judge explanations by what the model does when its prompt changes",
        description="Perturb each prompt as each method's scores say, and compare what the model does then. Printed\n"
        "are the methods by each protocol, with intervals over the cases. Whenever it is killed, the same\n"
        "command goes on where it was. A case that cannot be judged is a row with a sentence.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    add_model(command)
    command.add_argument(
        "--cases", required=True, metavar="FILE",
        help='a file with one case a line, such as {"id": "a", "prompt": "...", "target": " Sydney", "contrast": " '
        'Canberra", "gold": ["Australia"]}, as for `lrp-fast study run`; or a public set, which takes a network: '
        + ", ".join(SETS),
    )  # fmt: skip
    command.add_argument(
        "--limit", type=count, default=200, metavar="N", help="of a public set so many cases, drawn by --seed (200)"
    )
    command.add_argument(
        "--methods", nargs="+", default=["random", "gradient", "cp", "attnlrp"], metavar="METHOD",
        help=f"of {', '.join(METHODS)}, with options as in attnlrp:gamma=0.1,epsilon=0.01; or a file of scores by the "
        "cases' ids, NAME.json or NAME.npz (random gradient cp attnlrp)",
    )  # fmt: skip
    command.add_argument(
        "--protocols", nargs="+", default=["flip"], choices=PROTOCOLS, metavar="PROTOCOL",
        help=f"of {', '.join(PROTOCOLS)} (flip)",
    )  # fmt: skip
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for rows, evaluation.json, a table and pictures; not with --plan"
    )
    command.add_argument(
        "--replacement", choices=REPLACEMENTS, metavar="HOW",
        help=f"what stands in for tokens: {', '.join(map(repr, REPLACEMENTS))} (each protocol's own)",
    )  # fmt: skip
    command.add_argument(
        "--units", type=units, default="tokens", metavar="U",
        help="what is perturbed together: tokens, sentences, or a number of tokens (tokens)",
    )  # fmt: skip
    command.add_argument(
        "--turn", action="store_true", help="exchange target and contrast of cases whose contrast the model prefers"
    )
    command.add_argument(
        "--search", action="store_true",
        help="first find the best epsilon and gamma of attnlrp on a fifth of the cases, and judge them on the others",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    command.add_argument(
        "--plan", action="store_true", help="say how many tokens would go through the model, and run nothing"
    )
    command.add_argument("--json", action="store_true", help="print the table as JSON")
    add_device(command)
    add_dtype(command)


def units(text: str) -> str | int:
    """As `lrp_fast.evaluate` takes it."""
    if text in ("tokens", "sentences"):
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no unit: write tokens, sentences or a number of tokens")
    return int(text)
