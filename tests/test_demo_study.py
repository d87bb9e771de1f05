"""The worked study's cases: the same each time, and as they say of themselves."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from lrp_fast.sources import divide

KINDS = {"fact", "negation", "count", "copy", "needle", "needles", "object"}


def written(root, folder, *options, seed_of_hashes="0"):
    command = [sys.executable, str(root / "demo" / "study" / "generate.py"), str(folder), *options]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed_of_hashes, "PYTHONDONTWRITEBYTECODE": "1"})
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def files(root, tmp_path_factory):
    return written(root, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def cases(files):
    return [json.loads(line) for line in files["cases.jsonl"].splitlines()]


@pytest.fixture(scope="module")
def chats(files):
    return [json.loads(line) for line in files["chat.jsonl"].splitlines()]


def words(text):
    return re.findall(r"\w+", text.lower())


def spans(given):
    return [given] if given and given[0] == "chars" else given


def test_the_same_seed_makes_the_same_cases(root, files, tmp_path):
    assert written(root, tmp_path / "again", seed_of_hashes="1") == files
    other = written(root, tmp_path / "other", "--seed", "1")
    assert other.keys() == files.keys() and all(other[name] != files[name] for name in files)


def test_there_are_enough_of_each_kind(cases, chats):
    assert len(cases) >= 200 and 20 <= len(chats) < len(cases)
    assert Counter(case["kind"] for case in cases).keys() == KINDS
    ids = [case["id"] for case in cases + chats]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-z0-9-]+", one) for one in ids)
    told = [json.dumps(case.get("prompt", case.get("messages"))) for case in cases + chats]
    assert len(set(told)) == len(told)


def test_the_makefile_says_how_many_there_are(cases, root):
    assert f"on the {len(cases)} prompts of demo/study" in (root / "Makefile").read_text("utf-8")


def test_the_right_answer_is_told_from_a_mistake(cases, chats):
    for case in cases + chats:
        right, wrong = case["answer"], case["mistake"]
        for end in ("", ".", "\n\nQuestion:", ", and then"):
            assert re.search(case["pattern"], right + end), case["id"]
            assert not re.search(case["pattern"], wrong + end), case["id"]
            assert not re.search(case["pattern"], f"{wrong} or {right}{end}"), case["id"]
        inside = re.sub(r"(\w)(\W*)$", r"\1x\2", right)  # another word, which begins with the right one
        assert not re.search(case["pattern"], "") and not re.search(case["pattern"], inside), case["id"]


def test_parts_stand_where_they_are_said_to(cases):
    """Segments overlap nowhere, gold spans lie in them, and both are whole words."""
    for case in cases:
        prompt, taken = case["prompt"], []
        for name, given in case["segments"].items():
            for chars, start, end in spans(given):
                assert chars == "chars" and 0 <= start < end <= len(prompt), (case["id"], name)
                assert prompt[start:end] == prompt[start:end].strip()
                taken.append((start, end))
        taken.sort()
        assert all(a[1] <= b[0] for a, b in zip(taken, taken[1:], strict=False)), case["id"]
        assert case["gold"], case["id"]
        for _, start, end in case["gold"]:
            assert any(a <= start < end <= b for a, b in taken), case["id"]
            assert re.fullmatch(r"\w+(?: \w+)*", prompt[start:end]), case["id"]
            assert not any(re.search(r"\w\w", prompt[at - 1 : at + 1]) for at in (start, end)), case["id"]
        assert not re.search("[<>*|]", prompt) and prompt == prompt.strip(), case["id"]


def test_segments_begin_and_end_as_sentences_do(cases):
    known = {
        "question": r"Question: [A-Z].*\?",
        "needle": r"[A-Z].*\.",
        "distractor": r"[A-Z].*\.",
        "instruction": r"[A-Z].*\.",
        "instruction not": r"(Do not|The) .*\.",
    }
    for case in cases:
        for name, pattern in known.items():
            for _, start, end in spans(case["segments"].get(name, [])):
                text = case["prompt"][start:end]
                assert re.fullmatch(pattern, text) and "\n" not in text, (case["id"], name)
                assert text.count(".") + text.count("?") == 1, (case["id"], name)


def test_gold_is_what_the_answer_hangs_on(cases):
    """Where the prompt holds the answer, a gold span holds it; in a haystack it stands nowhere else."""
    for case in cases:
        gold = [case["prompt"][start:end] for _, start, end in case["gold"]]
        first = words(case["answer"])[0]
        if case["kind"] in ("copy", "needle", "needles", "object", "negation"):
            assert first in words(" ".join(gold)), case["id"]
        if case["kind"] in ("needle", "needles"):
            assert words(case["prompt"]).count(first) == 1, case["id"]
            assert words(case["mistake"])[0] in words(case["prompt"]), case["id"]
        if case["kind"] == "count" and case["form"] == "things":
            assert len(gold) == int(case["answer"]) and len(set(gold)) == 1, case["id"]


def test_needles_lie_at_their_depths(cases):
    for case in cases:
        if case["kind"] not in ("needle", "needles"):
            assert case["depth"] is None
            continue
        _, start, end = case["segments"]["needle"]
        straw = case["segments"]["question"][1]
        # All of the haystack but the needle itself; a sentence more or less, of 12 tokens, and the distractors' share.
        assert abs(start / (straw - (end - start)) - case["depth"]) <= 0.02 + 24 / case["length"], case["id"]
    by_length = Counter((case["kind"], case["length"]) for case in cases if case["depth"] is not None)
    assert {length for _, length in by_length} == {256, 512, 1024, 2048}
    assert len({case["depth"] for case in cases if case["kind"] == "needle"}) == 5


def test_lengths_are_about_those_in_tokens(cases, smollm2):
    _, tokenizer = smollm2
    for case in cases:
        tokens = len(tokenizer(case["prompt"]).input_ids)
        assert abs(tokens - case["length"]) <= 0.1 * case["length"] + 3, (case["id"], tokens)
        assert case["depth"] is not None or 14 <= tokens <= 300, (case["id"], tokens)


def test_segments_hold_tokens_and_share_none(cases, chats, smollm2):
    """As the study reads them; of a chat, in what the template writes."""
    from lrp_fast import prompt
    from lrp_fast.tokenizer import read

    _, tokenizer = smollm2
    tokenizer = read(tokenizer)
    for case in cases + chats:
        given = prompt.read(case.get("prompt", case.get("messages")), tokenizer)
        parts = divide(case["segments"], given, None, tokenizer, len(given.ids))
        assert set(case["segments"]) <= set(parts.names)
        gold = divide({"gold": case["gold"]}, given, None, tokenizer, len(given.ids))
        assert (gold.groups == 0).sum() >= len(case["gold"]), case["id"]
