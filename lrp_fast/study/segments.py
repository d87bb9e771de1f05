"""Segments: what the named parts of a case's prompt carry, and what that says of instructions."""

from __future__ import annotations

from ..attribution import Attribution
from ..offsets import runs
from ..question import Question
from ..sources import REST, Division, divide
from .cases import Case

INSTRUCTION = "instruction"


def division(case: Case, asked: Question) -> Division | None:
    """Which segment each token of a case's prompt is in; None of a case without segments.

    Raises:
        TypeError, ValueError: one sentence that names the segment, as `lrp_fast.attribute` of its ``sources``.
    """
    if not case.segments:
        return None
    return divide(case.segments, asked.prompt, asked.tokens, asked.tokenizer, len(asked.ids))


def spans(found: Division) -> dict[str, list[list[int]]]:
    """Segments as [start, end] of tokens, which need no text any more."""
    named = [(name, found.groups == number) for number, name in enumerate(found.names) if name != REST]
    return {name: [list(span) for span in runs(inside)] for name, inside in named}


def sums(result: Attribution) -> list[dict]:
    """Of each segment, "(rest)" included: its name, number of tokens, the sum of relevance and of |relevance| at the
    embeddings, and of relevance at each of the L + 1 layers (``layers``)."""
    if result.sources is None:
        return []
    found = result.sources
    counts = found.groups.bincount(minlength=len(found.names)).tolist()
    return [
        {
            "name": name,
            "tokens": counts[i],
            "relevance": float(found.relevance[0, i]),
            "magnitude": float(found.magnitude[0, i]),
            "layers": found.relevance[:, i].tolist(),
        }
        for i, name in enumerate(found.names)
    ]


def instruction_following(value: float, segments: list[dict], bound: float = 1.0) -> str | None:
    """What went wrong with a prompt's instructions, read off relevance after arXiv 2604.17761.

    The target is the wrong token and the contrast the right one, so that negative relevance speaks for the right
    answer. Of the segments whose names begin with "instruction", by their sums of relevance at the embeddings, where
    the value, the difference of the logits, is above the bound:

    - "under-weighted relevant instruction": one has a negative sum; it speaks for the right answer, and has lost;
    - "over-weighted irrelevant instruction": one has a positive sum; it speaks for the wrong answer;
    - "both", and "neither": all sums are 0, or the value is not above the bound.

    Debug-XAI's notebook draws the line elsewhere: it adds all instructions up first, divides by the largest
    |relevance|, asks whether the target's text stands in them, and calls them fine where all that it sums speaks
    against the target. Here each instruction has a sum of its own, and the difference of the logits decides alone.

    Args:
        value: what the case's relevance explains.
        segments: as `sums` gives them.

    Returns:
        One of the four, or None of a case without such segments.
    """
    own = [one["relevance"] for one in segments if one["name"].startswith(INSTRUCTION)]
    if not own:
        return None
    if not value > bound:
        return "neither"
    under, over = min(own) < 0, max(own) > 0
    if under and over:
        return "both"
    if under:
        return "under-weighted relevant instruction"
    return "over-weighted irrelevant instruction" if over else "neither"
