"""What a cut did, as plain data, and as plain text for a terminal."""

from __future__ import annotations

from dataclasses import asdict

from ..ablation import Ablation
from ..files import without_infinity
from .table import best_table, note, question

_NONE = (
    "nothing is predicted: relevance says it of tokens, sources or hidden states of one layer, set to zero, and of\n"
    "edges of one layer, of all heads, that it reaches"
)


def as_json(found: Ablation) -> dict:
    """By the names of `Ablation`; a logit that is not finite becomes None."""
    return without_infinity(
        {
            "before": found.before,
            "value": found.value,
            "change": found.change,
            "predicted": found.predicted,
            "explained": asdict(found.explained),
            "after": asdict(found.after),
        }
    )


def table(found: Ablation, predicted: bool = True) -> str:
    """What was asked, what it comes to whole and cut, and the best next tokens of both. Ends without a newline.

    ``predicted``: whether a prediction is spoken of, or that there is none.
    """
    lines = [*question(found.explained, found.before), *note(found.explained), ""]
    rows = {"before": found.before, "after": found.value, "change": found.change}
    if predicted and found.predicted is not None:
        rows["predicted"] = found.predicted
    lines += [f"{name:9}  {value + 0.0:+#11.4g}" for name, value in rows.items()]
    if predicted:
        lines += ["", _NONE if found.predicted is None else "predicted: minus the relevance of what was cut"]
    tables = (best_table(found.explained, " of the whole model"), best_table(found.after, " of the cut model"))
    return "\n\n".join(["\n".join(lines), *tables])
