"""Public sets of cases by name, for those with a network: they are loaded with Hugging Face's `datasets`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Set(NamedTuple):
    """Where a set is, and what a row of it is as a case.

    Attributes:
        given: the arguments of `datasets.load_dataset`.
        as_case: called with a row and its number; a case, or None of a row that is none.
        columns: that it reads.
    """

    given: Mapping[str, object]
    as_case: Callable[[dict, int], dict | None]
    columns: tuple[str, ...]


def _known(row: dict, number: int) -> dict:
    """A fact that a model knew; the gold span is whom or what it is about. The model's own first choice is asked."""
    case = {"id": f"known_1000-{row['known_id']}", "prompt": row["prompt"], "contrast": ["top", 1]}
    return case | {"gold": _spans(row["prompt"], row["subject"]), "answer": f" {row['attribute']}"}


def _indirect_object(row: dict, number: int) -> dict | None:
    """Who was given something, against who gave it; the gold spans are the name that comes next."""
    right, others = row["choices"][row["answerKey"]], [*row["choices"]]
    others.remove(right)
    if not others:
        return None
    case = {"id": f"ioi-{number}", "prompt": row["prompt"], "target": f" {right}", "contrast": f" {others[0]}"}
    return case | {"gold": _spans(row["prompt"], right)}


def _passage(row: dict, number: int) -> dict | None:
    """A question about a passage, which is the gold span's; questions without an answer are none."""
    if not row["answers"]["text"]:
        return None
    answer, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
    prompt = f"{row['context']}\n\nQuestion: {row['question']}\nAnswer:"
    case = {"id": f"squad_v2-{row['id']}", "prompt": prompt, "contrast": ["top", 1]}
    return case | {"gold": [["chars", start, start + len(answer)]], "answer": f" {answer}"}


def _spans(text: str, part: str) -> list[list]:
    return [["chars", *match.span()] for match in re.finditer(re.escape(part), text)]


SETS: dict[str, Set] = {
    # Meng et al., NeurIPS 2022 (arXiv 2202.05262).
    "known_1000": Set(
        {"path": "json", "data_files": "https://rome.baulab.info/data/dsets/known_1000.json", "split": "train"},
        _known,
        ("known_id", "prompt", "subject", "attribute"),
    ),
    # Indirect objects (Wang et al., ICLR 2023, arXiv 2211.00593), as MIB has them (arXiv 2504.13151).
    "ioi": Set({"path": "mib-bench/ioi", "split": "test"}, _indirect_object, ("prompt", "choices", "answerKey")),
    # Rajpurkar et al., ACL 2018 (arXiv 1806.03822).
    "squad_v2": Set(
        {"path": "rajpurkar/squad_v2", "split": "validation"}, _passage, ("id", "context", "question", "answers")
    ),
}


def load_set(name: str, limit: int = 200, seed: int = 0) -> list[dict]:
    """Cases of a public set, as `lrp_fast.study.read_cases` takes them.

    Args:
        name: of `SETS`.
        limit: how many at most, drawn by ``seed``; in the set's order.

    Raises:
        ValueError: for a name that there is not, or a set that has other columns than it had.
        ModuleNotFoundError: without the package datasets.
        OSError: if it cannot be loaded, as without a network.
    """
    if name not in SETS:
        raise ValueError(f"there is no set {name!r}: name {', '.join(SETS)}, or a file of cases")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the set {name!r} is loaded with datasets: pip install datasets") from error
    wanted = SETS[name]
    try:
        rows = datasets.load_dataset(**wanted.given)
    except Exception as error:  # of a hub, a server or a cache
        raise OSError(f"the set {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if missing := [column for column in wanted.columns if column not in rows.column_names]:
        raise ValueError(f"the set {name!r} has no column {missing[0]!r}: it is not what it was, give a file of cases")
    numbers = list(range(len(rows)))
    random.Random(f"{seed} {name}").shuffle(numbers)
    found = {}
    for number in numbers:
        if len(found) == limit:
            break
        case = wanted.as_case(rows[number], number)
        if case is not None:
            found[number] = case
    return [found[number] for number in sorted(found)]
