"""An attribution as plain data and in words: what the page, the table and a program reading JSON have in common."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import torch

from ..attribution import Attribution
from ..explained import Explained
from ..files import without_infinity
from ..rules import Rules
from ..sources import Sources


def as_json(result: Attribution) -> dict:
    """``result`` as dicts, lists, strings and finite numbers; the hidden layers stay in the safetensors file.

    Ranks count from 0, as in `Token`. A logit that is not finite (a masked token) becomes None: JSON has no infinity.

    Raises:
        ValueError: if a relevance is NaN or infinite.
    """
    num_nodes, num_tokens = result.layers.shape
    relevance = finite(result.layers)[0].tolist()
    ids = result.input_ids.tolist()
    texts = result.tokens or [None] * num_tokens
    special = result.special or [None] * num_tokens
    groups = result.sources and result.sources.groups.tolist()
    return {
        "value": without_infinity(result.value),
        "model": result.model,
        "rules": asdict(result.rules),
        "explained": without_infinity(asdict(result.explained)),
        "tolerance": result.tolerance,
        "dropped": result.dropped.tolist(),
        "num_layers": num_nodes - 1,
        "num_tokens": num_tokens,
        "tokens": [
            {"position": i, "id": ids[i], "text": texts[i], "special": special[i], "relevance": relevance[i]}
            | ({"source": groups[i]} if groups else {})
            for i in range(num_tokens)
        ],
        "sources": _sources(result.sources),
    }


def _sources(sources: Sources | None) -> list[dict] | None:
    """Of the input tokens; a token's ``source`` is an index into this list."""
    if sources is None:
        return None
    counts = sources.groups.bincount().tolist()
    columns = (sources.names, counts, sources.relevance[0].tolist(), sources.magnitude[0].tolist())
    names = ("name", "tokens", "relevance", "magnitude")
    return [without_infinity(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def page_head(told) -> dict:
    """What the head of a page reads, of an `Attribution` or of a graph's `About`."""
    return {
        "value": without_infinity(told.value),
        "explained": without_infinity(asdict(told.explained)),
        "contrast_words": contrast_words(told.explained),
        "value_words": value_words(told.explained),
        "candidate_words": candidate_words(told.explained)._asdict(),
        "rule": rule_words(told.rules),
        "bounded": bounded_words(told),
        "model": told.model,
    }


def finite(layers: torch.Tensor) -> torch.Tensor:
    """``layers`` (L + 1, N) on the CPU, outside autograd.

    Raises:
        ValueError: if it holds a NaN or an infinity: no scale, share or order would mean anything.
    """
    layers = layers.detach().cpu()
    wrong = (~torch.isfinite(layers)).nonzero()
    if len(wrong):
        layer, position = wrong[0].tolist()
        raise ValueError(
            f"the relevance at layer {layer}, position {position} is {layers[layer, position].item()} "
            f"({len(wrong)} such values): recompute in a dtype of wider range, such as bfloat16 or float32"
        )
    return layers


def contrast_words(explained: Explained) -> str | None:
    """What was subtracted where that is a mean; None where it is a token's logit, or nothing was compared."""
    if explained.kind == "top":
        return f"the mean of the {explained.others} best other {explained.of}s"
    return "the mean of all logits" if explained.kind == "mean" else None


class Words(NamedTuple):
    """Of candidates: several of them, and how a position stands to its own."""

    several: str
    at: str


def candidate_words(explained: Explained) -> Words:
    """What the candidates are: of a position the next tokens, those that it may hold itself, or its labels."""
    words = {"token": ("next tokens", "after"), "masked token": ("masked tokens", "at"), "label": ("labels", "at")}
    return Words(*words[explained.of])


def value_words(explained: Explained) -> tuple[str, str]:
    """What a term's value is, one and several of them."""
    names = {"logit": ("logit", "logits"), "logprob": ("log-probability", "log-probabilities")}
    names["function"] = ("function of the logits",) * 2  # of all terms together
    return names.get(explained.kind, ("logit difference", "logit differences"))


def rule_words(rules: Rules) -> str:
    """The rule's name and the stabilisers that are switched on, e.g. ``attnlrp, epsilon 1e-06``."""
    stabilisers = {name.replace("_", " "): value for name, value in asdict(rules).items() if name != "name"}
    return ", ".join([rules.name, *(f"{name} {value:g}" for name, value in stabilisers.items() if value)])


def bounded_words(told) -> str:
    """What a bounded backward pass left out, of an `Attribution` or of a graph's `About`; "" for an exact pass."""
    if not told.tolerance:
        return ""
    shares = [float(share) for share in told.dropped]
    most = max(range(len(shares)), key=shares.__getitem__, default=None)
    if most is None or not shares[most]:
        return f"tolerance {told.tolerance:g}, nothing left out"
    mean = sum(shares) / len(shares)
    return (
        f"tolerance {told.tolerance:g}, {100 * mean:.2g} % of the attention's mass left out, "
        f"at most {100 * shares[most]:.2g} % (layer {most})"
    )
