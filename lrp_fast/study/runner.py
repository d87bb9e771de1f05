"""The run of a study: every case explained once, whatever happens in between.

Cases are sorted by length, and short ones share a pass, as in `lrp_fast.attribute_batch`. Which ones is decided once,
for all of them, and kept in the manifest: a run that goes on takes the same packs, so that its numbers are those of an
undisturbed one. A pack counts as finished when the log has all its cases; what was killed runs again the one that was
running.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

from .. import question
from ..batch import size_of
from ..graph import GraphSpec
from ..hf import check_edges, check_hooks, decoder_layers
from ..memory import Memory, Plan, planned
from ..ops import read_tolerance
from ..packing import packs
from ..rules import Rules, as_rules
from ..tokenizer import read as read_tokenizer
from . import folder as folders
from . import manifest as manifests
from . import observed, passes, segments
from .cases import Case, read_cases
from .cluster import Ray
from .faults import first_line, is_lost
from .folder import Folder
from .passes import Asked, Finished, How
from .statistics import read_seed
from .table import Finding, check_installed, write_table

_HELD = 1_000_000  # tokens of cases that were read and wait for their pack: the others are read again


class Held(NamedTuple):
    """What was made when the packs were, and serves once more: cases that were read, and plans, of packs by their first
    case."""

    asked: dict[str, Asked]
    plans: dict[str, Plan]


class Progress(NamedTuple):
    """How far a run is: what is finished, of all that there is."""

    cases: int
    all_cases: int
    tokens: int
    all_tokens: int


def run(
    model,
    cases,
    folder: str | os.PathLike,
    *,
    tokenizer=None,
    rule: str | Rules = "attnlrp",
    graph: GraphSpec | None = None,
    memory: Memory | None = None,
    tolerance: float = 0.0,
    finding: Finding = segments.instruction_following,
    retry: bool = False,
    observe: Mapping[str, int] | Sequence[str] = (),
    ray: Ray | None = None,
    seed: int = 0,
    command: Sequence[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, int]:
    """Explain many cases into a folder, or go on where an earlier run of the same into it ended.

    A run may be killed at any moment, or end with an error; called again, it redoes at most the pack of cases that was
    running. A case that is malformed, or goes wrong, is a line of the log and a row of the table, with a sentence; the
    others go on.
    Where memory runs out, a pack is halved; a case that runs out alone has failed.

    Args:
        model, tokenizer, rule, graph, memory, tolerance: as of `lrp_fast.attribute`.
        cases: what `read_cases` takes, or what it gave.
        folder: a new folder, or one that a run of the same was begun in. See `lrp_fast.study.folder`.
        finding: what the table's column of that name holds, a string or None: called with the value and the sums of the
            segments of each case whose value is the difference of two tokens' logits.
        retry: whether cases that failed are tried again, and those that were refused for want of memory.
        observe: what else to look at, of "heads", "neurons", "lens" and "steps": see `lrp_fast.study.observed`. Cases
            then have a pass each.
        ray: who computes, where it is not this process: see `lrp_fast.study.cluster`. The folder is the same, but for
            the order of the log, which is that in which cases are finished; killed, it redoes at most the packs that
            the workers were at, and those that were on their way back.
        seed, command: kept in the manifest: what is drawn by whoever reads the results, and how the run was asked for.
        progress: called with a `Progress` after every pack.

    Returns:
        How many cases are "done", "failed" and "refused".

    Raises:
        ValueError, TypeError, UnsupportedModuleError: for a model or arguments that no case could be explained with;
            for a folder that another process works on, or that was begun with something else.
        OSError: if the disk is full, or something else is wrong with it. What is finished stays.
        RuntimeError: if the CUDA device is lost. What is finished stays.
        ModuleNotFoundError: without pyarrow (the extra ``study``), or with ``ray`` without Ray (the extra ``ray``).
    """
    check_installed("pyarrow")
    if ray is not None:
        ray.check()
    if graph is not None and not isinstance(graph, GraphSpec):
        raise TypeError(f"graph must be a lrp_fast.GraphSpec, not {type(graph).__name__}")
    given = (graph, memory, read_tolerance(tolerance), read_tokenizer(tokenizer), observed.read(observe))
    how = How(as_rules(rule), *given)
    read_seed(seed)
    question.check_model(model)
    check_hooks(model)
    if graph is not None:
        graph.check(len(decoder_layers(model)))
        check_edges(decoder_layers(model))
    observed.check(how.observe, model)
    cases, folder = read_cases(cases), Folder(folder)
    with folders.working(folder):
        text = folders.lines([case.as_line() for case in cases])
        same = manifests.of(model, how, text)
        held = Held({}, {})
        if folder.is_begun:
            manifest = folder.manifest()
            manifests.check(folder, manifest, same)
            if retry and (more := _packed(model, _refused(folder, cases, manifest["packs"]), how, held)):
                manifest |= {"packs": [*manifest["packs"], *more]}  # there is more room than there was
                folders.begin(folder, manifest, text)
        else:
            told = {"seed": seed, "command": None if command is None else list(command)}
            told["begun"] = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = same | told | {"packs": _packed(model, cases, how, held)}
            folders.begin(folder, manifest, text)
        figures = _go_on(model, cases, how, folder, manifest, held, retry, ray, progress)
        write_table(folder, cases, finding, figures, how.observe)
        found = [one["status"] for one in folder.statuses().values()]
    return {status: found.count(status) for status in ("done", "failed", "refused")}


def _go_on(
    model,
    cases: list[Case],
    how: How,
    folder: Folder,
    manifest: dict,
    held: Held,
    retry: bool,
    ray: Ray | None,
    progress: Callable[[Progress], None] | None,
) -> dict[str, dict]:
    """The figures of the results that were made, for the table."""
    units = manifest["packs"]
    by_id = {case.id: case for case in cases}
    logged = {id: one["status"] for id, one in folder.statuses().items()}
    packed = {id for unit in units for id in unit["ids"]}
    refused = [case for case in cases if case.id not in packed and case.id not in logged]
    folders.append(folder, [_entry(case.id, "refused", _why(model, case, how)) for case in refused])
    again = {id for id in packed if retry and logged.get(id) in ("failed", "refused")}
    todo = [
        unit for unit in units
        if again & set(unit["ids"]) or not all(_is_finished(folder, id, logged, how) for id in unit["ids"])
    ]  # fmt: skip
    left, all_tokens = sum(len(unit["ids"]) for unit in todo), sum(unit["tokens"] for unit in units)
    tokens = all_tokens - sum(unit["tokens"] for unit in todo)
    tell = progress or (lambda now: None)
    tell(Progress(len(cases) - left, len(cases), tokens, all_tokens))
    given = [[by_id[id] for id in unit["ids"]] for unit in todo]
    done = _here(model, how, todo, given, held) if ray is None else ray.finish(how, given, manifest["fingerprint"])
    figures: dict[str, dict] = {}
    with closing(done):
        for number, found, sums, seconds in done:
            unit = todo[number]
            if sums != unit["sums"]:
                raise ValueError(
                    f"{_several(unit['ids'])} become other tokens than when the run was begun: give the tokenizer and "
                    "the chat template that it was begun with (some templates write the date), or name another folder"
                )
            figures |= _write(folder, how, unit["ids"], found, seconds, logged, again)
            left, tokens = left - len(unit["ids"]), tokens + unit["tokens"]
            tell(Progress(len(cases) - left, len(cases), tokens, all_tokens))
    return figures


def _write(
    folder: Folder, how: How, ids: list[str], found: list[Finished], seconds: float, logged: dict[str, str], again: set
) -> dict[str, dict]:
    """A pack's files, then its lines of the log; the figures of those that are done."""
    begun, entries, figures = time.perf_counter(), [], {}
    for id, one in zip(ids, found, strict=True):
        if one.why is None:
            figures[id] = one.figures()
            for place, write in one.files.items():
                write(folder.file(place, id))
        status = "done" if one.why is None else "failed"
        kept = one.why is not None and logged.get(id) == "done" and _is_finished(folder, id, logged, how)
        if not kept and (logged.get(id) != status or id in again):  # else its line is there; others' were cut off
            entries.append(_entry(id, status, one.why))
    each = round((seconds + time.perf_counter() - begun) / len(ids), 6)
    folders.append(folder, [one | {"seconds": each} for one in entries])
    return figures


def _here(
    model, how: How, todo: list[dict], given: list[list[Case]], held: Held
) -> Iterator[tuple[int, list[Finished], list[int], float]]:
    """Of each pack its number, what became of its cases, the sums of their tokens, and the seconds that it took."""
    longest = 0
    for number, (unit, cases) in enumerate(zip(todo, given, strict=True)):
        begun = time.perf_counter()
        asked = [held.asked.pop(case.id, None) or passes.ask(model, case, how) for case in cases]
        sums = [one.sum for one in asked]
        if sums != unit["sums"]:  # which costs no pass
            yield number, [], sums, 0.0
        try:
            found = passes.finish(model, asked, how, longest, held.plans.pop(cases[0].id, None))
        except RuntimeError as error:
            if not is_lost(error, model):
                raise
            raise RuntimeError(
                f"the device was lost at {_several(unit['ids'])} ({first_line(error)}): what is finished is kept; "
                "start the same again, in a new process, and it goes on there"
            ) from error
        longest = max([longest, *(len(one.question.ids) for one, of in zip(asked, found, strict=True) if not of.why)])
        yield number, found, sums, time.perf_counter() - begun


def _is_finished(folder: Folder, id: str, logged: dict[str, str], how: How) -> bool:
    if logged.get(id) != "done":
        return id in logged
    places = ["results", *(["graphs"] * (how.graph is not None)), *(["observed"] * (how.observe is not None))]
    return all(folders.is_whole(folder.file(place, id)) for place in places)


def _entry(id: str, status: str, why: str | None, seconds: float = 0.0) -> dict:
    return {"id": id, "status": status, "why": why, "seconds": seconds}


def _several(ids: list[str]) -> str:
    return f"case {ids[0]!r}" if len(ids) == 1 else f"the {len(ids)} cases from {ids[0]!r} to {ids[-1]!r}"


def _why(model, case: Case, how: How) -> str:
    """Why a case is in no pack."""
    if case.left_out is not None:
        return case.left_out
    try:
        asked = passes.ask(model, case, how).question
        _plan(model, how, *size_of(asked))
    except ValueError as error:
        return str(error)
    return "there was no room for it in memory when the run was begun, and there is now: try it again, with retry"


def _refused(folder: Folder, cases: list[Case], units: list[dict]) -> list[Case]:
    packed, logged = {id for unit in units for id in unit["ids"]}, folder.statuses()
    return [case for case in cases if case.id in logged and case.id not in packed]


def _packed(model, cases: list[Case], how: How, held: Held) -> list[dict]:
    """The packs of all cases that can be explained, shortest first."""
    found = []  # (size, id, sum)
    room = _HELD
    for case in cases:
        if case.left_out is not None:
            continue
        try:
            asked = passes.ask(model, case, how)
        except ValueError:
            continue
        found.append((size_of(asked.question), case.id, asked.sum))
        if len(asked.question.ids) <= room:
            room -= len(asked.question.ids)
            held.asked[case.id] = asked
    found.sort(key=lambda one: one[0])  # which keeps the user's order among equals
    if not found:
        return []
    if not _has_room(model, how, map(max, zip(*(size for size, *_ in found), strict=True))):  # or all of them have it
        found = [one for one in found if _has_room(model, how, one[0])]
    if not found:
        return []
    sizes = [size for size, *_ in found]
    parts = [[row] for row in range(len(found))]  # a pass shows observers one prompt
    if how.observe is None:
        packed = packs(model, sizes, how.rules, how.graph, how.memory, how.tolerance)
        held.plans.update((found[part.rows[0]][1], part.plan) for part in packed)
        parts = [part.rows for part in packed]
    return [
        {"tokens": sum(sizes[row].tokens for row in rows)}
        | {"ids": [found[row][1] for row in rows], "sums": [found[row][2] for row in rows]}
        for rows in parts
    ]


def _plan(model, how: How, tokens: int, positions: int):
    given = {"positions": positions, "graph": how.graph, "tolerance": how.tolerance}
    return planned(model, tokens, how.rules, how.memory, **given)


def _has_room(model, how: How, size) -> bool:
    try:
        _plan(model, how, *size)
    except ValueError:
        return False
    return True
