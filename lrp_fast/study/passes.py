"""What becomes of a pack of cases: read, explained in one pass, and where that goes wrong, half of them at a time."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from .. import question
from ..attribution import Attribution, explain
from ..batch import explain_pack
from ..graph import GraphSpec
from ..graph import file as graph_file
from ..hf import device_of
from ..memory import Memory, Plan
from ..rules import Rules
from ..saved import as_bytes
from ..sources import Division, Sources
from . import observed, segments
from .cases import Case
from .faults import first_line, is_lost, is_out_of_memory, no_room, sentence
from .folder import put
from .table import figures_of


class How(NamedTuple):
    """How every case is explained, as of `lrp_fast.attribute`; ``observe`` is of `lrp_fast.study.observed.read`."""

    rules: Rules
    graph: GraphSpec | None
    memory: Memory | None
    tolerance: float
    tokenizer: object
    observe: dict | None = None


class Asked(NamedTuple):
    """A case that has been read."""

    question: question.Question
    division: Division | None

    @property
    def sum(self) -> int:
        """Of its tokens: another tokenizer, or a chat template of another day, makes others of the same text."""
        return zlib.crc32(self.question.ids.numpy().tobytes())


class Finished(NamedTuple):
    """What became of a case.

    Attributes:
        why: the sentence of one that failed; None of one that is done.
        figures: what the table says of it.
        files: by the folder that it belongs into, what writes a file of it to a path.
    """

    why: str | None
    figures: Callable[[], dict]
    files: dict[str, Callable[[Path], None]]


def ask(model, case: Case, how: How) -> Asked:
    """A case as the model will be asked it.

    Raises:
        ValueError: one sentence, for a case that cannot be.
    """
    try:
        given = (case.prompt, case.target, case.contrast, case.position)
        asked = question.read_on(model, *given, how.rules, how.tokenizer)
        return Asked(asked, segments.division(case, asked))
    except Exception as error:  # tokenizers and chat templates are foreign code
        raise ValueError(sentence(error, "reading it failed", (ValueError, TypeError))) from error


def finish(model, asked: list[Asked], how: How, longest: int = 0, plan: Plan | None = None) -> list[Finished]:
    """What becomes of each of the cases of a pack.

    Args:
        plan: of the pack, where it is known; else it is planned now, or cut into packs.
        longest: tokens of the longest case that fitted into memory before, for what is said of one that does not.

    Raises:
        OSError: if something is wrong with the disk that tensors wait on.
        RuntimeError: if the CUDA device is lost.
    """
    parts = [asked] if how.observe is None else [[one] for one in asked]
    found = [one for part in parts for one in _explained(model, part, how, longest, plan)]
    return [_finished(*one, how) if isinstance(one[1], Attribution) else Finished(one[1], dict, {})
            for one in zip(asked, found, strict=True)]  # fmt: skip


def _finished(asked: Asked, result: Attribution, how: How) -> Finished:
    if asked.division is not None:
        result = replace(result, sources=Sources.of(result.layers, asked.division))
    files = {"results": lambda path: put(path, as_bytes(result, checked=False))}
    if result.graph is not None:
        files["graphs"] = lambda path: graph_file.save(result.graph, path, half=False, sweep=False)
    kept = observed.of(how.observe, asked.division, result)
    if kept is not None:
        files["observed"] = lambda path: put(path, kept.as_bytes())
    return Finished(None, lambda: figures_of(result, result.graph, how.observe, kept), files)


def _explained(model, asked: list[Asked], how: How, longest: int, plan: Plan | None = None) -> list[Attribution | str]:
    """A result each, or why there is none. Where memory does not suffice for all, for one half and then the other."""
    why = None
    questions = [one.question for one in asked]
    try:
        if how.observe is not None:  # a pass shows observers one prompt
            watching = observed.observers(how.observe, asked[0].division)
            return explain(model, questions[0], how.graph, how.memory, None, how.tolerance, watching)
        found = explain_pack(model, questions, plan, how.graph, how.memory, None, how.tolerance)
        return [str(one) if isinstance(one, ValueError) else one for one in found]
    except OSError:  # which is no case's fault
        raise
    except Exception as error:
        if is_lost(error, model):
            raise
        why = sentence(error, "the pass failed").removeprefix("row 0: ")
        if is_out_of_memory(error):
            why = no_room(model, questions[0], how, first_line(error), longest)
    # Out here, as the error holds on to what the pass had taken.
    gc.collect()
    if device_of(model.get_input_embeddings()).type == "cuda":
        torch.cuda.empty_cache()
    if len(asked) == 1:
        return [why]
    half = len(asked) // 2
    return [*_explained(model, asked[:half], how, longest), *_explained(model, asked[half:], how, longest)]
