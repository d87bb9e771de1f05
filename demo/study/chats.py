"""A few cases of the same kinds as chats: the question alone, and the answer free in its words."""

from marked import drawn
from words import CAPITALS, COUNTED, DEEDS, NUMBERS


def cases(seed: int) -> list[dict]:
    return [*facts(), *negations(seed), *counts(seed)]


def facts() -> list[dict]:
    made = []
    for place, (right, wrong) in list(CAPITALS.items())[:12]:
        segments = {"question": f"What is the capital of {place}?"}
        made.append(chat("fact", place, segments, [place], right, right, wrong, wrong))
    return made


def negations(seed: int) -> list[dict]:
    made = []
    for verb, noun, kinds in DEEDS:
        right, wrong = drawn(seed, f"chat negation {verb} {noun}").sample(kinds, 2)
        segments = {
            "instruction": f"{verb.capitalize()} the {right} {noun}.",
            "instruction not": f"Do not {verb} the {wrong} {noun}.",
            "question": f"Which {noun} should I {verb}?",
        }
        gold = [f"{right} {noun}", f"not {verb} the {wrong}"]
        made.append(chat("negation", f"{verb}-{noun}", segments, gold, right, right, wrong, wrong))
    return made


def counts(seed: int) -> list[dict]:
    made = []
    numbers = "|".join(["[0-9]+", *NUMBERS, "once", "twice"])
    for i in range(8):
        random = drawn(seed, f"chat count {i}")
        thing, *others = random.sample(COUNTED, 3)
        number = 2 + i % 4
        things = [thing] * number + random.choices(others, k=2)
        random.shuffle(things)
        segments = {
            "things": f"My list is: {', '.join(things)}.",
            "question": f"Count: how many times is the word {thing} in my list?",
        }
        right = f"(?:{number}|{NUMBERS[number]}{'|twice' if number == 2 else ''})"
        wrong = NUMBERS[number + 1]
        made.append(chat("count", str(i), segments, [segments["things"]], NUMBERS[number], right, wrong, numbers))
    return made


def chat(
    kind: str, name: str, segments: dict, gold: list[str], answer: str, right: str, mistake: str, wrong: str
) -> dict:
    """A line of the file. Segments and gold spans are told by text: each stands in what the template writes once.

    An answer is right where what matches ``right`` stands in it, and nothing that matches ``wrong`` before that.
    """
    return {
        "id": f"chat-{kind}-{name}".lower().replace(" ", "-"),
        "kind": kind,
        "form": "chat",
        "messages": [{"role": "user", "content": " ".join(segments.values())}],
        "answer": answer,
        "pattern": rf"(?is)^(?:(?!\b(?:{wrong})\b).)*?\b{right}\b",
        "mistake": mistake,
        "segments": segments,
        "gold": gold,
    }
