"""The kinds of cases whose prompts are short: a function each, of a seed. haystacks.py has those with needles."""

import words
from haystacks import multi_needles, needles
from marked import case, drawn, starts_with


def facts(seed: int) -> list[dict]:
    """What the prompt does not say: it has to be known. The gold span is what is asked about."""
    made = []

    def add(form: str, subject: str, question: str, so: str, answer: str, wrong: str, pattern: str) -> None:
        text = "<frame|Here is a question, and after it the right answer.>\n\n"
        text += f"<question|Question: {question}>\n<answer|Answer: {so}>"
        made.append(case("fact", form, subject, text, answer, wrong, pattern))

    for place, (right, wrong) in words.CAPITALS.items():
        question, so = f"What is the capital of *{place}*?", f"The capital of *{place}* is"
        add("capital", place, question, so, right, wrong, starts_with(f"(?:the city of )?{right}"))
    for thing, (right, wrong) in words.COLOURED.items():
        question, so = f"What colour is *{thing}*?", f"The colour of *{thing}* is"
        add("colour", thing, question, so, right, wrong, starts_with(f"(?:usually |a |bright |deep |dark )*{right}"))
    for word, (right, wrong) in words.OPPOSITES.items():
        question, so = f'What is the opposite of "*{word}*"?', f'The opposite of "*{word}*" is'
        first = right.split("|")[0]
        add("opposite", word, question, so, f'"{first}"', f'"{wrong}"', starts_with(rf'(?:the word )?"?(?:{right})'))
    for animal, (right, wrong) in words.YOUNG.items():
        question, so = f"What is the young of *{animal}* called?", f"The young of *{animal}* is called a"
        add("young", animal, question, so, right, wrong, starts_with(f'"?{right}'))
    for i, month in enumerate(words.MONTHS):
        before, after = words.MONTHS[i - 1], words.MONTHS[(i + 1) % 12]
        side, right, wrong = ("before", before, after) if i % 2 else ("after", after, before)
        question, so = f"Which month comes right *{side}* *{month}*?", f"The month right *{side}* *{month}* is"
        add("month", month, question, so, right, wrong, starts_with(right))
    return made


def negations(seed: int) -> list[dict]:
    """One thing is to be done, another is not: as in ../run.py, in several forms."""
    made = []
    for verb, noun, kinds in words.DEEDS:
        for form in ("not", "not-first", "never", "two", "asked"):
            name = f"{verb}-{noun}"
            right, wrong, third = drawn(seed, f"negation {form} {name}").sample(kinds, 3)
            do = f"<instruction|{verb.capitalize()} the *{right}* {noun}.>"
            dont = f"<instruction not|Do *not* {verb} the *{wrong}* {noun}.>"
            never = f"<instruction not|The *{wrong}* {noun} is one that you must *never* {verb}.>"
            two = f"<instruction not|Do *not* {verb} the *{wrong}* {noun} or the *{third}* {noun}.>"
            first, second = {"not-first": (dont, do), "never": (do, never), "two": (do, two)}.get(form, (do, dont))
            negated = " not" if form == "asked" else ""
            text = f"{first} {second}\n\n<question|Question: Which {noun} should I{negated} {verb}?>\n"
            text += f"<answer|Answer: You should{negated} {verb} the>"
            if form == "asked":
                right, wrong = wrong, right
            made.append(case("negation", form, name, text, right, wrong))
    return made


def counts(seed: int) -> list[dict]:
    """Sequences to go on with, things to count, and sums in words. Numbers may be written in digits or letters."""
    made = []

    def add(form: str, name: str, text: str, number: int, wrong: int) -> None:
        alike = [str(number)] + ([words.NUMBERS[number]] if number < len(words.NUMBERS) else [])
        made.append(case("count", form, name, text, str(number), str(wrong), starts_with(*alike)))

    for step in (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15):
        start = drawn(seed, f"count steps {step}").randrange(1, 10)
        terms = [start + step * i for i in range(6)]
        shown = ", ".join(map(str, terms[:3])) + f", *{terms[3]}*, *{terms[4]}*"
        text = f"<instruction|Count on in steps of *{step}*, and do not leave any number out.>\n\n<sequence|{shown}>,"
        add("steps", f"{step:02d}", text, terms[5], terms[5] + 1)
    for i in range(20):
        random = drawn(seed, f"count things {i}")
        thing, *others = random.sample(words.COUNTED, 4)
        number = 2 + i % 5
        things = [f"*a {thing}*"] * number + [f"a {one}" for one in random.choices(others, k=random.randrange(2, 6))]
        random.shuffle(things)
        shown = ", ".join(things).replace("a apple", "an apple")
        text = "<example|On the chair there are these things: a hat, a shoe, a hat, a brush.\n\n"
        text += "Question: How many hats are on the chair?\nAnswer: There are exactly 2 hats.>\n\n"
        text += f"<things|On the table there are these things: {shown}.>\n\n"
        text += f"<question|Question: How many {thing}s are on the table?>\n<answer|Answer: There are exactly>"
        add("things", f"{i:02d}", text, number, len(things))
    for i in range(16):
        random = drawn(seed, f"count sums {i}")
        (name, other), thing = random.sample(words.NAMES, 2), random.choice(words.COUNTED) + "s"
        had, more, less = random.randrange(3, 8), random.randrange(3, 5), random.randrange(1, 3)
        told = f"{name} has *{had}* {thing}. {other} gives {name} *{more}* more {thing}."
        left = had + more
        if i % 2:
            told += f" Then {name} loses *{less}* {thing}."
            left -= less
        text = "<example|Paul has 2 hats. Ruth gives Paul 4 more hats.\n\n"
        text += "Question: How many hats does Paul have now?\nAnswer: Paul now has 6 hats.>\n\n"
        text += f"<story|{told}>\n\n<question|Question: How many {thing} does {name} have now?>\n"
        text += f"<answer|Answer: {name} now has>"
        add("sums", f"{i:02d}", text, left, had)
    return made


def copies(seed: int) -> list[dict]:
    """Lists of words: to be copied, to be copied where a word stands in them twice, to be read backwards and by place.

    The gold span is the word that comes next.
    """
    made = []

    def add(form: str, i: int, task: str, given: list[str], at: int, so: str, right: list[str], wrong: str) -> None:
        shown = ", ".join(f"*{word}*" if k == at else word for k, word in enumerate(given))
        text = f"<instruction|{task}>\n\n<list|List: {shown}>\n<answer|{so}>"
        pattern = starts_with(rf'"?{", ".join(right)}')
        made.append(case("copy", form, f"{i:02d}", text, ", ".join(right), wrong, pattern))

    for i in range(10):
        random = drawn(seed, f"copy list {i}")
        given = random.sample(words.WORDS, 8 + i)
        at = random.randrange(2, len(given) - 3)
        so = f"Copy: {', '.join(given[:at])},"
        add("list", i, "Copy the list word by word.", given, at, so, given[at : at + 2], given[at + 1])
    for i in range(12):
        twice, *rest = drawn(seed, f"copy twice {i}").sample(words.WORDS, 7 + i % 4)
        given = [rest[0], twice, *rest[1:-1], twice, rest[-1]]  # what follows the word is another one the second time
        at = len(given) - 1
        so = f"Copy: {', '.join(given[:at])},"
        add("twice", i, "Copy the list word by word.", given, at, so, given[at:], given[2])
    for i in range(12):
        given = drawn(seed, f"copy backwards {i}").sample(words.WORDS, 5 + i % 4)
        at = len(given) - 2 - i % 2
        so = f"Backwards: {', '.join(given[:at:-1])},"
        task = "Write the list backwards, from its last word to its first."
        add("backwards", i, task, given, at, so, [given[at]], given[0])
    for i in range(15):
        place = 2 + i % 5
        given = drawn(seed, f"copy place {i}").sample(words.WORDS, 6 + i % 3)
        nth = words.ORDINALS[place]
        task, so = f"Find the *{nth}* word of the list.", f"The *{nth}* word of the list is the word"
        add("place", i, task, given, place - 1, so, [given[place - 1]], given[0])
    return made


def indirect_objects(seed: int) -> list[dict]:
    """Some are somewhere, and one gives another something. The gold spans are the name that comes next."""
    made = []
    for i in range(50):
        random = drawn(seed, f"object {i}")
        one, two, three = random.sample(words.NAMES, 3)
        place, gift = random.choice(words.PLACES), random.choice(words.GIFTS)
        pair = f"*{one}* and {two}" if i % 2 else f"{two} and *{one}*"
        form = ("plain", "left", "back", "refused", "passive")[i % 5]
        scene, turn, wrong = {
            "plain": (
                f"One day {pair} went to the {place} together, and stayed there for hours.",
                f"Then {two} gave the {gift} to",
                two,
            ),
            "left": (
                f"One day {pair} met {three} at the {place}. {three} had to leave, and {three} did not come back.",
                f"When the two of them were alone, {two} gave the {gift} to",
                three,
            ),
            "back": (
                f"{three}, *{one}* and {two} sat in a row. {three} gave the {gift} to *{one}*, who gave it to {two}.",
                f"Then {two} gave it back to",
                three,
            ),
            "refused": (
                f"{three}, {pair} met at the {place}. {two} had a {gift} for {three}, but {three} did not want it.",
                f"And so {two} gave the {gift} to",
                three,
            ),
            "passive": (
                f"One day {two} and *{one}* met at the {place}. {two} was given a {gift} by *{one}*.",
                f"The one who gave the {gift} away was",
                two,
            ),
        }[form]
        made.append(case("object", form, f"{i:02d}", f"<scene|{scene}> <turn|{turn}>", one, wrong))
    return made


KINDS = (facts, negations, counts, copies, needles, multi_needles, indirect_objects)
