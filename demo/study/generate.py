"""The cases of the worked study: written by templates and words of our own, the same ones for the same seed.

    python demo/study/generate.py FOLDER

writes FOLDER/cases.jsonl, prompts of plain text, for base models as well, and FOLDER/chat.jsonl, a few of the same
kinds as messages, for models with a chat template. A line is a case, as `lrp-fast study` reads it:

- ``id``, ``kind`` and ``form``, a kind's own subdivision
- ``prompt`` or ``messages``
- ``answer``: what is right, as it goes on from the prompt; ``pattern``: a regular expression that every right answer
  has at its beginning; ``mistake``: a wrong answer that suggests itself
- ``segments``: the prompt's parts by name, none within another; ``gold``: spans, each within a segment, of the words
  that the right answer hangs on
- ``length``: about how many tokens the prompt has; no tokenizer is asked, but the words are common ones
- ``depth``, where there is a haystack: how much of it stands before the needle, 0 to 1

Which cases a model gets wrong, and over which token, is for `lrp-fast study pairs` to find.
"""

import argparse
import json
from pathlib import Path

import chats
import kinds

SEED = 0


def cases(seed: int = SEED) -> list[dict]:
    """All cases of plain text."""
    return [case for kind in kinds.KINDS for case in kind(seed)]


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the cases of the worked study.")
    parser.add_argument("folder", type=Path, help="where cases.jsonl and chat.jsonl go; made where there is none")
    parser.add_argument("--seed", type=int, default=SEED, help=f"for other cases of the same kinds (default: {SEED})")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    write(given.folder / "cases.jsonl", cases(given.seed))
    write(given.folder / "chat.jsonl", chats.cases(given.seed))


if __name__ == "__main__":
    main()
