"""A whole answer of 5,000 tokens explained in one pass, over the plain forward pass. Two threads, 4 minutes."""

import prompts

PROMPT, ANSWER, TURNS = 512, 5000, 2
CASES = ("forward", "its last token", "the whole answer")


def pytest_generate_tests(metafunc):
    tiny = metafunc.config.getoption("--tiny")
    prompt, answer = (32, 16) if tiny else (PROMPT, ANSWER)
    given = [(prompt, answer, turn, case) for turn in range(TURNS) for case in CASES]
    names = [f"{answer}-{case}-turn{turn}" for _, answer, turn, case in given]
    metafunc.parametrize(("prompt", "answer", "turn", "case"), given, ids=names)


def test_answers(contender, tokenizer, prompt, answer, turn, case):
    """The last of its tokens is not read, so that all three read as many."""
    group, ids = f"answers, {answer} tokens", prompts.needle(tokenizer, prompt + answer)["ids"]
    read, last = ids[:-1], ids[-1]
    asked = {
        "forward": ("forward", {"ids": read, "target": last}),
        "its last token": ("attribute", {"ids": read, "target": last}),
        "the whole answer": ("attribute", {"ids": ids[:prompt], "target": None, "answer": ids[prompt:]}),
    }
    call, given = asked[case]
    contender(group, case, "ours", call, given, prompt=prompt)
