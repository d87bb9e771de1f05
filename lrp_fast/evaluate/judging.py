"""`evaluate`, and `plan`, which says what it would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from ..question import Question
from ..study.cases import Case, read_cases
from ..study.faults import first_line, is_lost
from ..tokenizer import Tokenizer
from ..tokenizer import read as read_tokenizer
from . import perturb
from .given import Scores
from .protocols import PROTOCOLS, Protocol
from .result import Evaluation, Row
from .scene import Scene, check_scores
from .staging import ask, check_model, rehearse, stage
from .units import units_of

Method = Callable[[torch.nn.Module, Tensor, Question], Tensor]


class Cost(NamedTuple):
    """What a protocol takes, of all methods and cases, without what the methods themselves take.

    Attributes:
        protocol: its name.
        tokens: that go through the model; what several methods share is counted once, where it comes first.
        cases: that it was counted of.
    """

    protocol: str
    tokens: int
    cases: int


def evaluate(
    model,
    cases,
    methods: Mapping[str, Method | Scores] | Iterable[str],
    protocols: Mapping[str, Protocol | Callable] | Iterable[str],
    *,
    tokenizer=None,
    replacement: str | None = None,
    units: str | int = "tokens",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge explanations by what the model does when its prompt changes.

        lrp_fast.evaluate(model, "cases.jsonl", ["attnlrp", "random"], ["flip", "morf_lerf"], tokenizer=tokenizer)

    What does not depend on a method, such as leaving each token out once, is run once a case for all of them.

    Args:
        model: a causal language model that `lrp_fast.attribute` takes.
        cases: what `lrp_fast.study.read_cases` takes; a field ``gold``, a list of spans as segments have them, is what
            "recovery" looks for. The logits behind the last token are asked, and one target.
        methods: words that `lrp_fast.evaluate.methods.named` knows, or methods by names of one's own: what is called
            with the model, (N,) token ids and the question (its target settled) and gives (N,) floats, higher where a
            token speaks for the target over the contrast; or what `lrp_fast.evaluate.scores_from` read of a file. One
            that has an attribute ``rules`` has a graph by these, for "graph_cuts".
        protocols: names of `lrp_fast.evaluate.PROTOCOLS`, or protocols by names of one's own (see there).
        tokenizer: as of `lrp_fast.attribute`. Its special tokens are never perturbed; without one, none are known.
        replacement: what stands in for tokens, one of `lrp_fast.evaluate.REPLACEMENTS`; None: each protocol's own.
        units: what is perturbed together: "tokens" one by one, a number of them, or "sentences". A unit's score is the
            sum of its tokens'.
        seed: of what is drawn.
        progress: called with how many of all pairs of cases and methods are done, and how many there are.

    Returns:
        A row a case, method and protocol; what goes wrong is a row with a sentence, and the others go on.

    Raises:
        ValueError, TypeError, UnsupportedModuleError: for a model or arguments that no case could be judged with.
        OSError: if a file of cases cannot be read.
        RuntimeError: if the CUDA device is lost.
    """
    methods, protocols, cases, tokenizer = read(model, cases, methods, protocols, tokenizer, replacement, units)
    rows: list[Row] = []
    done, all_pairs = 0, len(cases) * len(methods)
    for case in cases:
        try:
            asked = ask(model, case, tokenizer)
            scene, asked = stage(model, case, asked, units, replacement, seed)
        except Exception as error:
            rows.append(Row(case.id, None, None, why=_why(error, model)))
            scene = None
        for name, method in methods.items():
            if scene is not None:
                rows += _judged(model, case, asked, scene, name, method, protocols)
            done += 1
            if progress is not None:
                progress(done, all_pairs)
    about = about_of(model, len(cases), methods, protocols, replacement, units, seed)
    return Evaluation(rows, better_of(protocols), about)


def plan(
    model,
    cases,
    methods: int,
    protocols: Mapping[str, Protocol | Callable] | Iterable[str],
    *,
    tokenizer=None,
    replacement: str | None = None,
    units: str | int = "tokens",
    seed: int = 0,
) -> list[Cost]:
    """What `evaluate` would run, counted by running each protocol without the model, once a method, by random rankings.

    What stops early ("flip") is counted to its end. How much rows share of their prefixes hangs on the rankings, so
    that the count is that of random ones. Cases that cannot be judged cost nothing.

    Args:
        methods: how many.
        model, cases, protocols, tokenizer, replacement, units, seed: as of `evaluate`.
    """
    _, protocols, cases, tokenizer = read(model, cases, {}, protocols, tokenizer, replacement, units)
    tokens, counted = dict.fromkeys(protocols, 0), dict.fromkeys(protocols, 0)
    for case in cases:
        try:
            asked = ask(model, case, tokenizer)
            scene, taken = rehearse(model, case, asked, units, replacement, seed)
        except (ValueError, TypeError):
            continue
        for number in range(methods):
            scores = torch.from_numpy(scene.drawn("plan", number).random(scene.length))
            for name, protocol in protocols.items():
                taken.clear()
                if protocol.prompts is not None:
                    taken.append(protocol.prompts * scene.length)
                else:
                    try:
                        protocol.run(scores, scene)
                    except (ValueError, TypeError):
                        continue
                tokens[name] += sum(taken)
                counted[name] += number == 0
    return [Cost(name, tokens[name], counted[name]) for name in protocols]


def about_of(model, count: int, methods, protocols, replacement: str | None, units, seed: int) -> dict:
    """`Evaluation.about` of ``count`` cases."""
    return {
        "model": getattr(model.config, "name_or_path", "").rpartition("/")[2],
        "cases": count,
        "methods": list(methods),
        "protocols": list(protocols),
        "replacement": replacement,
        "units": units,
        "seed": seed,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def better_of(protocols: Mapping[str, Protocol]) -> dict[str, dict[str, str]]:
    """`Evaluation.better`."""
    return {name: dict(one.better) for name, one in protocols.items()}


def read(
    model, cases, methods, protocols, tokenizer, replacement: str | None, units: str | int
) -> tuple[dict, dict[str, Protocol], list[Case], Tokenizer | None]:
    """Methods and protocols by name, cases and tokenizer, of arguments as of `evaluate`, which takes them as they are.

    Raises:
        ValueError, TypeError, UnsupportedModuleError, OSError: as `evaluate`.
    """
    check_model(model)
    if replacement is not None:
        perturb.check_replacement(replacement)
    units_of(units, 1, [False], None if tokenizer is None else [""])
    if not isinstance(methods, Mapping):
        from .methods import named  # which reads this room's files first

        methods = {word: named(word) for word in _listed("methods", methods)}
    methods = dict(methods)
    for name, method in methods.items():
        if not callable(method) and not isinstance(method, Scores):
            kind = type(method).__name__
            raise TypeError(f"method {name!r} must be a callable, or what scores_from read, not a {kind}")
    if not isinstance(protocols, Mapping):
        protocols = {name: _protocol(name) for name in _listed("protocols", protocols)}
    protocols = {name: one if isinstance(one, Protocol) else Protocol(one, {}) for name, one in protocols.items()}
    if not protocols:
        raise ValueError(f"there are no protocols: name some of {', '.join(map(repr, PROTOCOLS))}")
    return methods, protocols, read_cases(cases), read_tokenizer(tokenizer)


def _listed(what: str, given) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{what} must be a list of names, or a dict of {what} by name, not {given!r}")
    return list(given)


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}: name some of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _judged(
    model, case: Case, asked: Question, scene: Scene, name: str, method: Method | Scores, protocols: dict[str, Protocol]
) -> list[Row]:
    try:
        if isinstance(method, Scores):
            scores = method.of_case(case.id, scene.length)
        else:
            own = asked._replace(ids=asked.ids.clone())  # which a method may write into, and the next one reads
            scores = method(model, own.ids, own)
        check_scores(scores, scene.length)
    except Exception as error:
        return [Row(case.id, name, None, why=_why(error, model))]
    scene.rules, rows = getattr(method, "rules", None), []
    for protocol, one in protocols.items():
        try:
            found = one.run(scores, scene)
        except Exception as error:
            rows.append(Row(case.id, name, protocol, why=_why(error, model)))
            continue
        measures = {key: float(value) for key, value in found.items() if not isinstance(value, list)}
        curves = {key: value for key, value in found.items() if isinstance(value, list)}
        rows.append(Row(case.id, name, protocol, measures, curves))
    return rows


def _why(error: Exception, model) -> str:
    """A sentence, of what may be somebody else's code; a device that is lost ends it all."""
    if is_lost(error, model):
        raise error
    said = first_line(error)
    return said if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {said}"
