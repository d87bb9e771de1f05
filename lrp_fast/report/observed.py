"""What observers kept of an attribution, as plain data and as plain text for a terminal."""

from __future__ import annotations

from ..explained import Explained
from ..files import without_infinity
from ..observers import HeadRelevance, NeuronRelevance, Scores

_ACROSS = 6  # positions of the lens beside each other


def heads_as_json(found: HeadRelevance, most: int) -> list[dict]:
    """The ``most`` heads with the greatest |relevance| at their output, the strongest first.

    Keys and values are those of the key/value head that a head reads: of grouped ones several heads name the same.
    """
    wide, groups = found.output.shape[1], found.key.shape[1]
    rows = []
    for index in found.output.flatten().abs().argsort(descending=True, stable=True)[:most].tolist():
        row, head = divmod(index, wide)
        group = head * groups // wide
        rows.append(
            {
                "layer": int(found.layer[row]),
                "head": head,
                "kv_head": group,
                "output": float(found.output[row, head]),
                "query": float(found.query[row, head]),
                "key": float(found.key[row, group]),
                "value": float(found.value[row, group]),
            }
        )
    return without_infinity(rows)


def neurons_as_json(found: NeuronRelevance, most: int) -> list[dict]:
    """The ``most`` neurons of all layers with the greatest |relevance|, the strongest first."""
    order = found.relevance.abs().argsort(descending=True, stable=True)[:most]
    columns = (found.layer[order].tolist(), found.neuron[order].tolist(), found.relevance[order].tolist())
    return without_infinity(
        [dict(zip(("layer", "neuron", "relevance"), row, strict=True)) for row in zip(*columns, strict=True)]
    )


def lens_as_json(found: Scores, explained: Explained) -> dict:
    """Scores as a list a layer, from the embeddings to the last layer's output, of a number a position.

    Positions that other targets of the same pass explain are left out: there is nothing of this one.
    """
    own = {term.position for term in explained.terms}
    places = [i for i, position in enumerate(found.positions) if position in own]
    return without_infinity(
        {
            "positions": [found.positions[i] for i in places],
            "scores": found.scores[:, places].tolist(),
            "commitment": found.commitment[places].tolist(),
        }
    )


def sections(observed: dict) -> str:
    """A section for each of "heads", "neurons" and "lens" that is there, as the functions above give it.

    Ends without a newline.
    """
    made = {"heads": _heads, "neurons": _neurons, "lens": _lens}
    return "\n\n".join("\n".join(made[name](found)) for name, found in observed.items())


def _heads(found: list[dict]) -> list[str]:
    lines = [
        "heads of greatest |relevance| at their output, and what of it goes on by their queries, and by the keys and",
        "values that they read (those of a key/value head, which others may share)",
        "",
        "rank  layer   head  kv head       output      queries         keys       values",
    ]
    for rank, one in enumerate(found, start=1):
        columns = "  ".join(_number(one[name]) for name in ("output", "query", "key", "value"))
        lines.append(f"{rank:4d}  {one['layer']:5d}  {one['head']:5d}  {one['kv_head']:7d}  {columns}")
    return lines


def _neurons(found: list[dict]) -> list[str]:
    title = "neurons of greatest |relevance|, at the input of the MLP's last linear map"
    return [title, "", "rank  layer  neuron    relevance"] + [
        f"{rank:4d}  {one['layer']:5d}  {one['neuron']:6d}  {_number(one['relevance'])}"
        for rank, one in enumerate(found, start=1)
    ]


def _lens(found: dict) -> list[str]:
    positions, shown = found["positions"], slice(_ACROSS)
    lines = [
        "logit lens: the score that the model's head gives what each layer hands on (layer 0: the embeddings,",
        "layer l: what decoder layer l - 1 puts out)",
        "",
        "layer  " + "  ".join(f"{f'after {position}':>11}" for position in positions[shown]),
    ]
    for layer, scores in enumerate(found["scores"]):
        lines.append(f"{layer:5d}  " + "  ".join(map(_number, scores[shown])))
    several = "s" if len(positions) > 1 else ""
    layers = ", ".join(map(str, found["commitment"][shown]))
    lines.append(f"commitment layer{several}, from which on no score has another sign than the last: {layers}")
    if len(positions) > _ACROSS:
        lines.append(f"and {len(positions) - _ACROSS} more positions, which the JSON has")
    return lines


def _number(value: float | None) -> str:
    """A relevance or score in eleven columns, without -0; a logit that no float holds has none."""
    return f"{'-':>11}" if value is None else f"{value + 0.0:+#11.4g}"
