"""``lrp-fast ablate``: cut it, and see."""

from __future__ import annotations

import argparse
import json

from .explain import attributed, loaded, read_question, read_tokens, settled
from .objects import read_object
from .prompt import _read_prompt

_TOPK = 1024  # edges into each target, by which their cut is predicted: of no longer prompt one is missing


def run(options: argparse.Namespace) -> int:
    prompt, question = _read_prompt(options), read_question(options)
    cut = read_object("--cut", options.cut, 'lists, such as {"tokens": [4]}')
    model, tokenizer = loaded(options)
    given, replacement = read_tokens(options, prompt, tokenizer), options.replacement
    question = settled(options, model, question)
    if replacement not in ("zero", "mean"):
        replacement = read_tokens(options, replacement, tokenizer)

    from .. import GraphSpec, ablate
    from ..ablation import check
    from ..report.ablation import as_json, table

    asked = {"what": cut, "replacement": replacement, "tokenizer": tokenizer}
    if options.no_prediction or replacement != "zero":
        found = ablate(model, given, **asked, **question)
    else:
        check(model, given, **asked, **question)  # before what takes longer
        if _has_prediction(cut):
            layers = sorted({edge[0] for edge in cut.get("edges", ())})
            graph = GraphSpec(topk=_TOPK, layers=layers) if layers else None
            question = {"result": attributed(options, model, tokenizer, given, question, graph)}
        found = ablate(model, given, **asked, **question)
    if options.json:
        cut = {"cut": cut, "replacement": options.replacement}
        print(json.dumps(cut | as_json(found), ensure_ascii=False, allow_nan=False))
    else:
        print(table(found, not options.no_prediction))
    return 0


def _has_prediction(cut: dict) -> bool:
    """Whether an attribution may hold one of what is cut: it takes longer than all the rest."""
    if cut.keys() & {"heads", "neurons"}:
        return False
    edges = cut.get("edges", [])
    whole = all(len(edge) == 3 for edge in edges)  # not of one head
    return not edges or (len(cut) == 1 and whole and len({layer for layer, *_ in edges}) == 1)
