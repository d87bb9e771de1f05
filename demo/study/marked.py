"""Prompts with their parts marked, and the cases that they make."""

import random
import re


def drawn(seed: int, name: str) -> random.Random:
    """A case's own source of chance, so that no case changes with those before it."""
    return random.Random(f"{seed} {name}")


def size(text: str) -> int:
    """About how many tokens it is: one for each word, mark and digit, and for a blank before a digit."""
    return len(re.findall(r"[^\W\d]+|\d|[^\w\s]|\n+| (?=\d)", plain(text)[0]))


def plain(text: str) -> tuple[str, dict, list]:
    """A text without its marks, and what was marked.

    ``<name|...>`` is a segment, ``*...*`` a gold span. A name that comes again has several spans.

    Returns:
        text, segments and gold, spans of characters in the form ["chars", start, end].
    """
    out, segments, gold, opened, starred = "", {}, [], None, None
    for part in re.split(r"(<[a-z ]+\||>|\*)", text):
        if part.startswith("<"):
            opened = part[1:-1], len(out)
        elif part == ">":
            name, start = opened
            segments.setdefault(name, []).append(["chars", start, len(out)])
        elif part == "*" and starred is None:
            starred = len(out)
        elif part == "*":
            gold.append(["chars", starred, len(out)])
            starred = None
        else:
            out += part
    return out, {name: spans[0] if len(spans) == 1 else spans for name, spans in segments.items()}, gold


def starts_with(*answers: str) -> str:
    """The pattern of what goes on with one of ``answers``, regular expressions: whole words; "Anna's" is not "Anna"."""
    return rf"(?i)^\s*(?:{'|'.join(answers)})\b(?!['’]s\b)"


def case(
    kind: str, form: str, name: str, text: str, answer: str, mistake: str, pattern: str | None = None,
    length: int | None = None, depth: float | None = None,
) -> dict:  # fmt: skip
    """A line of the file, of a marked prompt; answers are given without the blank before them."""
    prompt, segments, gold = plain(text)
    return {
        "id": f"{kind}-{form}-{name}".lower().replace(" ", "-"),
        "kind": kind,
        "form": form,
        "prompt": prompt,
        "answer": f" {answer}",
        "pattern": pattern or starts_with(re.escape(answer)),
        "mistake": f" {mistake}",
        "segments": segments,
        "gold": gold,
        "length": length or size(prompt),
        "depth": depth,
    }
