"""The options of ``lrp-fast study``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_building, add_device, add_dtype, add_dtype_and_memory, add_model, add_running, count


def add_study(commands, epilog: str) -> None:
    """``lrp-fast study run``, ``pairs``, ``compare`` and ``page``."""
    command = commands.add_parser(
        "study",
        help="explain many cases in one run, which can be killed and goes on where it was",
        description="From a file of cases to a folder of results and a table of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    parts = command.add_subparsers(dest="part", metavar="PART", required=True)
    _add_run(parts, epilog)
    _add_pairs(parts, epilog)
    _add_compare(parts, epilog)
    _add_page(parts, epilog)


def _add_run(parts, epilog: str) -> None:
    part = parts.add_parser(
        "run",
        help="explain every case of a file into a folder",
        description="Explain every case of a file: short ones together, the shortest first. The folder then holds a\n"
        "result a case, a log, and a table, cases.parquet. Whenever it is interrupted or killed, the same\n"
        "command goes on where it was. A case that is malformed or goes wrong is a row with a sentence.\n"
        "Exit status 1 if not a single case could be explained.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    add_model(part)
    part.add_argument(
        "cases", type=Path,
        help='a file with one case a line, such as {"id": "a", "prompt": "...", "target": " Sydney", "contrast": " '
        'Canberra"}; or trace files of Debug-XAI: one .json, or a folder of them',
    )  # fmt: skip
    part.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    part.add_argument(
        "--retry", action="store_true", help="try again the cases that had failed, and those that memory was short for"
    )
    part.add_argument(
        "--seed", type=int, default=0, metavar="N", help="kept in the manifest, for what is drawn from the results (0)"
    )
    part.add_argument("--json", action="store_true", help="print the counts as JSON")
    _add_observing(part)
    part.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="let workers of Ray compute: of the Ray at this address, auto for the one that this machine is part of, "
        "or if left out of one of this machine's own; with --device cuda, a worker has a GPU",
    )  # fmt: skip
    part.add_argument("--workers", type=count, metavar="N", help="with --ray: as many as there are GPUs, or CPUs")
    add_running(part)
    add_building(part, "no graph, unless --mass")
    add_dtype_and_memory(part)


def _add_observing(part: argparse.ArgumentParser) -> None:
    seen = part.add_argument_group(
        "what observers see, for the table and the pages", "with any of these, a case has a pass of its own"
    )
    seen.add_argument(
        "--heads", type=count, nargs="?", const=10, metavar="K", help="the K strongest attention heads of a case (10)"
    )
    seen.add_argument(
        "--neurons", type=count, nargs="?", const=10, metavar="K", help="the K strongest MLP neurons of a case (10)"
    )
    seen.add_argument("--lens", action="store_true", help="the logit lens, and the layer from which on its sign stays")
    seen.add_argument(
        "--steps", action="store_true", help="the trajectories of its segments' mean hidden states through the layers"
    )


def _add_pairs(parts, epilog: str) -> None:
    part = parts.add_parser(
        "pairs",
        help="of prompts that a model gets wrong, find the token where it goes wrong and what should stand there",
        description="Write an answer to every prompt, greedily; where it is wrong, find the first token at which\n"
        "another of the model's K best leads to a right answer. What a right answer is, each line says:\n"
        '"answer", a string, or "pattern", a regular expression; besides, "stronger" may be a stronger\n'
        'model\'s answer, and with "wrong", a wrong answer, nothing is written: where the two differ first\n'
        "is the pair.\n"
        "What comes out is a file of cases for `lrp-fast study run`. What has been found meanwhile stands\n"
        "in CASES.unfinished: killed, the same command goes on there.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    add_model(part)
    part.add_argument(
        "cases", type=Path, help='a file with one prompt a line, such as {"id": "a", "prompt": "...", "answer": "12"}'
    )
    part.add_argument("--out", type=Path, required=True, metavar="CASES", help="the file of cases to be written")
    part.add_argument("--topk", type=count, default=10, metavar="K", help="how many of the best tokens are tried (10)")
    part.add_argument(
        "--bound", type=float, default=1.0, metavar="X", help="leave out pairs of a logit difference not above X (1)"
    )
    part.add_argument("--max-new-tokens", type=count, default=64, metavar="N", help="of an answer, at most (64)")
    part.add_argument("--batch", type=count, default=16, metavar="N", help="answers written at once, at most (16)")
    part.add_argument("--json", action="store_true", help="print the counts as JSON")
    add_device(part)
    add_dtype(part)


def _add_compare(parts, epilog: str) -> None:
    part = parts.add_parser(
        "compare",
        help="hold runs of the same cases against each other: other models, sizes, checkpoints or rules",
        description="Compare each run with the first: what goes together, by Pearson and Spearman, how distributions\n"
        "and segments differ, and which cases flip. Cases are paired by id. One that a run does not have, or\n"
        "has not explained, is counted and named, and so is an id that stands for another prompt.\n"
        "Written are tables (.csv and .parquet), plots (.svg) and summary.json.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    part.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of `lrp-fast study run`, two or more")
    part.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the comparison is written")
    part.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the bootstrap, by which intervals are found (0)"
    )
    part.add_argument("--json", action="store_true", help="print the summary as JSON instead of tables")


def _add_page(parts, epilog: str) -> None:
    part = parts.add_parser(
        "page",
        help="write pages of a run: its cases to be sorted and filtered, plots, a page a case, a comparison",
        description="Write a folder that opens in a browser, offline: index.html has plots and a row a case, and\n"
        "leads to a page of each. With --compare, other runs of the same cases get theirs too, and\n"
        "comparison.html shows them side by side. Asked again, pages of cases that are there stay.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    part.add_argument("run", type=Path, help="the folder of a run")
    part.add_argument("--compare", type=Path, nargs="+", default=[], metavar="OTHER", help="folders of other runs")
    part.add_argument("--out", type=Path, metavar="FOLDER", help="where the pages are written (RUN/pages)")
    part.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap intervals (0)")
