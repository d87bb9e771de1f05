"""What the benchmarks ask: one sentence hidden in real text, the licences that come with the installed packages.

Tiles of attention that carry little relevance are what a tolerance leaves out: how many there are depends on the text,
so random tokens would not do.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata

PACKAGES = ("torch", "numpy", "matplotlib", "pandas", "networkx", "pytest", "transformers")  # pinned
NEEDLE = " The door of the north tower is painted blue. "
QUESTION = " As it says above, the door of the north tower is painted"
ANSWERS = (" blue", " red")  # target and contrast: the first token of each
SHORT = (  # sixteen of these, cut to one length, are a batch of short prompts
    "Cut the red wire. Do not cut the blue wire. You should cut the wire that is nearest to the door, after the lamp"
    " has gone out and the bell has rung {n} times, and then you should say aloud that the colour of the wire, in the"
    " end, was"
)


@functools.cache
def licences() -> str:
    """The texts, longest first; the same text is taken once."""
    texts = set()
    for name in PACKAGES:
        for path in importlib.metadata.files(name) or []:
            if "licen" in path.name.lower() and path.suffix not in (".py", ".pyc"):
                texts.add(path.locate().read_text("utf-8", errors="ignore"))
    return "\n\n".join(sorted(texts, key=lambda text: (-len(text), text)))


def needle(tokenizer, tokens: int) -> dict:
    """``ids`` of that many tokens, the needle at two fifths of the text, and the ids of target and contrast."""
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    hidden, question = encode(NEEDLE), encode(QUESTION)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    left = tokens - len(start) - len(hidden) - len(question)
    text = encode(licences()[: 12 * tokens])[:left]
    if left < 0 or len(text) < left:
        raise ValueError(
            f"there is no prompt of {tokens} tokens: the licences have {len(text)}, the rest {tokens - left}"
        )
    at = left * 2 // 5
    ids = [*start, *text[:at], *hidden, *text[at:], *question]
    return {"ids": ids, **answers(tokenizer)}


def reread(tokenizer, ids: list[int]) -> list[int]:
    """Nearly the same tokens, such that their text encodes to them again: where two texts meet, tokens may merge."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    again = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.encode(tokenizer.decode(again), add_special_tokens=False) != again:
        raise ValueError("this text does not encode to the same tokens twice")
    return again


def short(tokenizer, number: int, tokens: int) -> dict:
    """``prompts``: so many of so many tokens each."""
    texts = [tokenizer.encode(SHORT.format(n=n), add_special_tokens=False) for n in range(number)]
    return {"prompts": [ids[-tokens:] for ids in texts], **answers(tokenizer)}


def answers(tokenizer) -> dict:
    target, contrast = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ANSWERS)
    return {"target": target, "contrast": contrast}


def digest(ids) -> str:
    """What tells two prompts apart in a result: which licences are installed is not ours to say."""
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:12]
