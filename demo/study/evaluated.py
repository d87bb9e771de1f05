"""The cases that explanations are judged on: prompts of the worked study, with two answers to compare.

    python demo/study/evaluated.py FILE
    python demo/study/evaluated.py FILE --needles 256 512 1024 2048 4096 8192 --each 2

writes FILE, a case a line, as `lrp-fast evaluate` reads them: facts, negations, indirect objects, and short haystacks
with one needle and with six; or, with --needles, haystacks alone, of these lengths, with a needle at each of five
depths.

A line is one of generate.py's with ``target`` and ``contrast``, its right answer and its mistake, in the place of
``answer``, ``pattern`` and ``mistake``. ``gold`` is what the right answer hangs on, of a needle the whole sentence.
Which of the two a model prefers is for `lrp-fast evaluate --turn` to find.
"""

import argparse
from pathlib import Path

from generate import SEED, write
from haystacks import DEPTHS, multi_needles, needles
from kinds import facts, indirect_objects, negations


def short(seed: int = SEED) -> list[dict]:
    """Of every kind, none longer than some 130 tokens; indirect objects of the next seed, too."""
    more = [one | {"id": f"{one['id']}-more"} for one in indirect_objects(seed + 1)[:25]]
    made = [*facts(seed), *negations(seed), *indirect_objects(seed), *more]
    made += [*needles(seed, {96: (1, DEPTHS)}), *multi_needles(seed, {128: 3})]
    return [compared(one) for one in made]


def haystacks(lengths: list[int], each: int, seed: int = SEED) -> list[dict]:
    """``each`` needles a length and depth."""
    return [compared(one) for one in needles(seed, {length: (each, DEPTHS) for length in lengths})]


def compared(case: dict) -> dict:
    told = {name: value for name, value in case.items() if name not in ("answer", "pattern", "mistake", "gold")}
    gold = [case["segments"]["needle"]] if "needle" in case["segments"] else case["gold"]
    return told | {"target": case["answer"], "contrast": case["mistake"], "gold": gold}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the cases that explanations are judged on.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--needles", type=int, nargs="+", metavar="N", help="haystacks alone, of so many tokens")
    parser.add_argument("--each", type=int, default=2, metavar="K", help="needles a length and depth (default: 2)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"for other cases of the same kinds (default: {SEED})")
    given = parser.parse_args()
    made = haystacks(given.needles, given.each, given.seed) if given.needles else short(given.seed)
    given.file.parent.mkdir(parents=True, exist_ok=True)
    write(given.file, made)


if __name__ == "__main__":
    main()
