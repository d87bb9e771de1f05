"""An attribution as plain data and in words: what the page, the table and a program reading JSON have in common."""

from __future__ import annotations

from dataclasses import asdict

import torch

from ..attribution import Attribution
from ..files import without_infinity
from ..rules import Rules
from ..targets import Explained


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
            for i in range(num_tokens)
        ],
    }


def page_head(told) -> dict:
    """What the head of a page reads, of an `Attribution` or of a graph's `About`."""
    return {
        "value": without_infinity(told.value),
        "explained": without_infinity(asdict(told.explained)),
        "contrast_words": contrast_words(told.explained),
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
    """What was subtracted where it is no single token; None where it is one, and for a plain logit."""
    if explained.kind == "top":
        return f"the mean of the {explained.others} best other tokens"
    return "the mean of all logits" if explained.kind == "mean" else None


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
