"""Needles in haystacks: a sentence that a question is about, alone or with its like, among those of no matter."""

import random
import re

from marked import case, drawn, size, starts_with
from words import COLOURS, DID, GIFTS, NAMES, PLACES, WHEN, WHO, WORDS

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# length in tokens: cases a depth, and the depths. A long one costs as much as all short ones of a kind.
SINGLE = {256: (3, DEPTHS), 512: (2, DEPTHS), 1024: (1, DEPTHS), 2048: (1, DEPTHS[1:4])}
SEVERAL = {256: 6, 512: 3, 1024: 1}


def needles(seed: int, lengths: dict[int, tuple] = SINGLE) -> list[dict]:
    """One needle, and somewhere else a sentence that looks like it."""
    made = []
    for length, (count, depths) in lengths.items():
        for depth in depths:
            for i in range(count):
                name = f"{length:04d}-{round(100 * depth):03d}-{i}"
                chance = drawn(seed, f"needle {name}")
                form, needle, distractor, question, answer, wrong, pattern = FORMS[len(made) % len(FORMS)](chance)
                away = chance.choice([one for one in DEPTHS if abs(one - depth) >= 0.25])
                text = haystack(chance, length, question, [(depth, needle), (away, distractor)])
                made.append(case("needle", form, name, text, answer, wrong, pattern, length, depth))
    return made


def multi_needles(seed: int, lengths: dict[int, int] = SEVERAL) -> list[dict]:
    """Six needles that differ in name and word; one is asked for."""
    made = []
    for length, count in lengths.items():
        for i in range(count):
            name = f"{length:04d}-{i}"
            chance = drawn(seed, f"needles {name}")
            people, words = chance.sample(NAMES, 6), chance.sample(WORDS, 6)
            asked = chance.randrange(6)
            depths = [0.08 + 0.16 * place for place in range(6)]
            several = [
                f"<needle|*{who}* was told the secret word *{word}*.>" if k == asked
                else f"<distractor|{who} was told the secret word {word}.>"
                for k, (who, word) in enumerate(zip(people, words, strict=True))
            ]  # fmt: skip
            who = people[asked]
            question = f"<question|Question: Which secret word does *{who}* know?>\n"
            question += f"<answer|Answer: {who} was told the secret word>"
            text = haystack(chance, length, question, list(zip(depths, several, strict=True)))
            depth = round(depths[asked], 2)
            pattern = starts_with(f'"?{words[asked]}')
            made.append(case("needles", "six", name, text, words[asked], words[asked - 1], pattern, length, depth))
    return made


def haystack(chance: random.Random, length: int, question: str, sentences: list[tuple[float, str]]) -> str:
    """A prompt of about ``length`` tokens: ``sentences`` at their depths among others, and the question behind.

    Depths count the haystack's own sentences.
    """
    wanted = length - size(question) - sum(size(sentence) for _, sentence in sentences) - 1
    straw, whole, left = [], 0, []
    while whole < wanted:
        if not left:  # each once, and once more in the longest
            left = [(who, did) for who in WHO for did in DID]
            chance.shuffle(left)
        straw.append(f"{' '.join(left.pop())} {chance.choice(WHEN)}.")
        whole += size(straw[-1])
    for place, sentence in sorted(((round(depth * len(straw)), one) for depth, one in sentences), reverse=True):
        straw.insert(place, sentence)
    return f"{' '.join(straw)}\n\n{question}"


def _door(chance: random.Random) -> tuple:
    (here, there), (right, wrong) = chance.sample(PLACES, 2), chance.sample(COLOURS, 2)
    return (
        "door", f"<needle|The door of the *{here}* is painted *{right}*.>",
        f"<distractor|The door of the {there} is painted {wrong}.>",
        f"<question|Question: What colour is the door of the {here}?>\n<answer|Answer: The colour of the door is>",
        right, wrong, starts_with(right),
    )  # fmt: skip


def _keeps(chance: random.Random) -> tuple:
    (owner, other), gift, (right, wrong) = chance.sample(NAMES, 2), chance.choice(GIFTS), chance.sample(PLACES, 2)
    return (
        "keeps", f"<needle|*{owner}* hid the {gift} behind the *{right}*.>",
        f"<distractor|{other} hid the {gift} behind the {wrong}.>",
        f"<question|Question: Where can the {gift} of {owner} be found?>\n<answer|Answer: It can be found behind the>",
        right, wrong, starts_with(right),
    )  # fmt: skip


def _number(chance: random.Random) -> tuple:
    (here, there), (right, wrong) = chance.sample(PLACES, 2), chance.sample(range(1000, 10000), 2)
    return (
        "number", f"<needle|To get into the *{here}* you need the number *{right}*.>",
        f"<distractor|To get into the {there} you need the number {wrong}.>",
        f"<question|Question: Which number opens the {here}?>\n<answer|Answer: The number that opens it is>",
        str(right), str(wrong), starts_with(re.escape(str(right))),
    )  # fmt: skip


FORMS = (_door, _keeps, _number)
