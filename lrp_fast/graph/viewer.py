"""Graphs in the JSON that attribution-graph viewers open: circuit-tracer's and Neuronpedia's.

What a file must hold is said by Neuronpedia's graph-schema.json (apps/webapp/app/api/graph/); that labels of logits
hold "(p=", that there is a layer above 0, and that names are unique is what the code of both viewers relies on.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from ..explained import Explained, Term, Token
from ..files import without_infinity
from ..ops import read_tolerance
from ..rules import Rules
from .export import few_edges, held


def to_attribution_graph(graph, slug: str, scan: str | None) -> dict:
    explained = explained_of(graph)
    if explained is None:
        raise ValueError(
            "this graph does not say what was explained, so it has no logits to show: export the graph that "
            "lrp_fast.attribute returned, not a difference, groups of tokens or one made by hand"
        )
    terms = explained.terms
    for term in terms:
        if term.position >= graph.num_tokens:
            raise ValueError(f"the manifest explains position {term.position} of {graph.num_tokens} tokens")
    edges = few_edges(graph)
    shown = held(graph, edges)
    read = [_read(graph, term, len(terms) == 1) for term in terms]
    shown[-1, [position for shares in read for position in shares]] = True
    shown[-1, [term.position for term in terms]] = True
    positions = shown.any(0).nonzero()[0]
    column = np.full(graph.num_tokens, -1)
    column[positions] = np.arange(len(positions))

    def name(layer: int, position: int) -> str:
        return f"{layer or 'E'}_{position}_{column[position]}"

    nodes = [
        _viewer_node(
            name(layer, position),
            "embedding" if layer == 0 else "residual stream",
            "E" if layer == 0 else str(layer),
            int(column[position]),
            -1,
            f"layer {layer}, position {position}, {_text(graph, position)!r}, "
            f"relevance {graph.nodes[layer, position].item():+.4g}",
        )
        for layer, position in np.argwhere(shown).tolist()
    ]
    links = [
        {"source": name(layer, source), "target": name(layer + 1, target), "weight": weight}
        for layer, source, target, weight in zip(*(one.tolist() for one in edges), strict=True)
    ]
    logits = []
    for term, shares in zip(terms, read, strict=True):
        relevance = graph.nodes[-1, [*shares]].sum().item()
        for label, about, weight, is_target in _outputs(explained, term, relevance):
            node = _viewer_node(
                f"{graph.num_layers + 1}_{label}_{column[term.position]}",
                "logit",
                str(graph.num_layers + 1),
                int(column[term.position]),
                label if isinstance(label, int) else -1,
                about,
            )
            logits.append(node | {"is_target_logit": is_target})
            links += [
                {"source": name(graph.num_layers, position), "target": node["node_id"], "weight": share * weight}
                for position, share in shares.items()
            ]
    tokens = [_text(graph, position) for position in positions.tolist()]
    return {
        "metadata": {
            "slug": slug,
            "scan": str(graph.manifest.get("model", "")) if scan is None else scan,
            "transcoder_list": [],
            # circuit-tracer's page leaves out features that occur at over two thirds of the tokens: of one token, all.
            "prompt_tokens": tokens if len(tokens) > 1 else [*tokens, ""],
            "prompt": _with_gaps(tokens, positions),
            "info": {
                "description": "Nodes are residual-stream states, weights are signed relevance.",
                "generator": {"name": "lrp_fast", "version": _version(graph)},
            },
            "generation_settings": without_infinity(
                {"positions": positions.tolist()}
                | {one: graph.manifest[one] for one in ("value", "rules", "spec", "pruned") if one in graph.manifest}
            ),
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": logits[0]["node_id"],
            "sg_pos": "",
        },
        "nodes": nodes + logits,
        "links": links,
    }


def explained_of(graph) -> Explained | None:
    """What was explained, as the manifest of a graph from `lrp_fast.attribute` has it; None in any other graph."""
    try:
        return Explained.from_dict(graph.manifest["explained"])
    except (KeyError, TypeError):
        return None


class About(NamedTuple):
    """What the head of a report tells."""

    explained: Explained
    value: float
    rules: Rules
    model: str
    tolerance: float
    dropped: list[float]


def about(graph) -> About | None:
    """As `explained_of`, with what else such a manifest says."""
    explained, manifest = explained_of(graph), graph.manifest
    try:
        value, rules, model = manifest["value"], Rules(**manifest["rules"]), manifest["model"]
        tolerance = read_tolerance(manifest.get("tolerance", 0.0))  # graphs from before there was one are exact
        dropped = [float(share) for share in manifest.get("dropped", [])]
    except (KeyError, TypeError, ValueError):
        return None
    if explained is None or not isinstance(model, str) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) <= sys.float_info.max:  # integers of any length among them
        return None
    return About(explained, value, rules, model, tolerance, dropped)


def _version(graph) -> str:
    versions = graph.manifest.get("versions")
    return str(versions.get("lrp_fast", "")) if isinstance(versions, dict) else ""


def _read(graph, term: Term, alone: bool) -> dict[int, float]:
    """Whose last hidden states a term's logits are made of, and their shares in it: those of its position, but for a
    classifier that takes a mean over all tokens."""
    relevance = graph.nodes[-1].double()
    if not alone or not relevance.any() or relevance.sum() == 0:
        return {term.position: 1.0}
    return {one: (relevance[one] / relevance.sum()).item() for one in relevance.nonzero().flatten().tolist()}


def _outputs(explained: Explained, term: Term, relevance: float) -> list[tuple[int | str, str, float, bool]]:
    """For each logit of a term its id or kind, its label, what it adds to the explained value, and whether it is the
    target. Both viewers read the probability out of the label, whose form is circuit-tracer's; here it is not known.

    A function of the logits has one node a position, to which the ``relevance`` of that position goes."""
    if explained.kind == "function":
        return [(explained.kind, 'Output "a function of the logits" (p=?)', relevance, True)]
    target = term.target
    found = [(target.id, f"{_output(target)}, logit {target.logit:.4g}, rank {target.rank + 1}", target.logit, True)]
    if term.contrast is not None:
        other = term.contrast
        label = f"{_output(other)}, logit {other.logit:.4g}, rank {other.rank + 1}, the contrast"
        found.append((other.id, label, -other.logit, False))
    elif term.contrast_logit is not None:
        words = {"mean": "mean of all logits", "logprob": "log of the sum of exp of all logits"}
        words = words.get(explained.kind, f"mean of the {explained.others} best others")
        role = "" if explained.kind == "logprob" else ", the contrast"
        found.append((explained.kind, f'Output "{words}" (p=?){role}', -term.contrast_logit, False))
    return found


def _output(token: Token) -> str:
    return f'Output "{f"#{token.id}" if token.text is None else token.text}" (p=?)'


def _viewer_node(node_id: str, kind: str, layer: str, column: int, feature: int, label: str) -> dict:
    return {
        "node_id": node_id,
        "jsNodeId": node_id,
        "feature": feature,  # -1: no feature of a dictionary, so that no page of one is looked up
        "layer": layer,
        "ctx_idx": column,
        "feature_type": kind,
        "clerp": label,
    }


def _with_gaps(tokens: list[str], positions: np.ndarray) -> str:
    """The tokens as one text, " ... " where some between them are left out."""
    gaps = np.diff(positions, prepend=-1) > 1
    return "".join(f" ... {token}" if gap else token for token, gap in zip(tokens, gaps.tolist(), strict=True))


def _text(graph, position: int) -> str:
    return f"#{position}" if graph.tokens is None else graph.tokens[position]
