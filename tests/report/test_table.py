import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lrp_fast.report.table import best_table, strongest_tokens, table


def rows(text):
    """(rank, position, rest) of every line that lists a token."""
    found = re.findall(r"^ +(\d+) +(\d+)  (.*)$", text, re.M)
    return [(int(rank), int(position), rest) for rank, position, rest in found]


def test_the_strongest_come_first_and_special_ones_apart(attribution):
    text = table(attribution(list("abcde"), relevance=[9.0, 1.0, -2.0, 0.0, -1.0], special=[True] + [False] * 4), top=3)
    assert [(rank, position) for rank, position, _ in rows(text)] == [(1, 2), (2, 1), (3, 4), (1, 0)]
    assert [rest.split() for _, _, rest in rows(text)] == [
        ["'c'", "-2.000", "50.00", "%", "-" * 10],
        ["'b'", "+1.000", "25.00", "%", "+" * 5],
        ["'e'", "-1.000", "25.00", "%", "-" * 5],
        ["'a'", "+9.000", "+" * 10],
    ]
    assert "share: of the summed |relevance| of the 4 tokens that are not special, 4.000" in text
    assert "special tokens, 1 in all, together +9.000:" in text


def test_float64_relevances_need_not_fit_float32(attribution):
    layers = torch.tensor([[1e-60, -3e-60], [0.0, 0.0]], dtype=torch.float64)
    found = rows(table(replace(attribution(["a", "b"]), layers=layers)))
    assert [(position, rest.split()[1:4]) for _, position, rest in found] == [
        (1, ["-3.000e-60", "75.00", "%"]),
        (0, ["+1.000e-60", "25.00", "%"]),
    ]


@pytest.mark.filterwarnings("ignore:overflow")
def test_float64_relevances_may_lie_at_the_end_of_their_range(attribution):
    layers = torch.tensor([[1.7e308, -1.7e308], [0.0, 0.0]], dtype=torch.float64)
    found = rows(table(replace(attribution(["a", "b"]), layers=layers)))
    assert [rest.split()[-1] for _, _, rest in found] == ["+" * 10, "-" * 10]


def test_no_control_character_reaches_the_terminal(attribution, hostile):
    text = table(attribution(hostile, note="\x1b]0;owned\x07", model="\u202em\n"), top=len(hostile))
    assert len(rows(text)) == len(hostile)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert r"\x1b[31mred\x07" in text and r"note: \x1b]0;owned\x07" in text and r"\u202em\n" in text


def test_no_control_character_comes_from_a_target(attribution, candidates, hostile):
    best = [replace(token, text=text) for token, text in zip(candidates, hostile[6:], strict=False)]
    text = best_table(replace(attribution(["a"]).explained, best=best))
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert r"'\x1b[31mred\x07'" in text


def test_wide_and_long_tokens_keep_the_columns(attribution):
    text = table(attribution(["日本語" * 9, "x" * 99, "e\u0301", "🙂", "a"], relevance=[5.0, 4.0, 3.0, 2.0, 1.0]))

    def columns(line):  # of a terminal, up to the relevance
        return sum(2 if char in "日本語🙂" else char != "\u0301" for char in line[: line.index("+")])

    lines = [line for line in text.splitlines() if re.match(" +[1-5] ", line)]
    assert len(lines) == 5 and len({columns(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("kind", "question", "sum_"),
    [
        ("logit", "Why ' Paris' after position 2?", "logit +18.25 (rank 1)"),
        (
            "difference",
            "Why ' Paris' rather than ' Lyon' ",
            "difference +3.000 = 18.25 - 15.25 (rank 1 against rank 4)",
        ),
        ("mean", "Why ' Paris' rather than the mean of all logits ", "difference +19.75 = 18.25 - (-1.500) (rank 1)"),
        ("top", "Why ' Paris' rather than the mean of the 2 best other ", "difference +4.500 = 18.25 - 13.75 (rank 1)"),
        ("logprob", "Why ' Paris' after position 2?", "log-probability -0.2500 = 18.25 - 18.50 (rank 1)"),
        ("function", "Why this value of a function of the logits after 2?", "value +18.25"),
    ],
)
def test_every_kind_says_what_is_explained(attribution, kind, question, sum_):
    first, second, third, *_ = table(attribution(["a", "b", "c"], kind=kind)).splitlines()
    assert first.startswith(question) and second.endswith(sum_)
    assert third == "a/model, rule attnlrp, epsilon 1e-06, 3 tokens, 3 layers"


def test_a_span_lists_its_positions(attribution):
    text = table(attribution(["a"] * 40, positions=range(20, 40)))
    assert text.startswith("Why these 20 next tokens? The sum of their logit differences is +60.00:")
    assert "\n  after 20: ' Paris' rather than ' Lyon'  +3.000 = 18.25 - 15.25 (rank 1 against rank 4)\n" in text
    assert "\n  and 8 more\n" in text and "after 32" not in text


def test_a_function_is_of_all_its_positions_and_has_no_target(attribution):
    result = attribution(["a"] * 40, positions=range(20, 40), kind="function")
    assert table(result).startswith("Why this value of a function of the logits after 20, 21, 22, ")
    assert " 31 and 8 more positions?\nvalue +365.0\n" in table(result)
    assert "target" not in best_table(result.explained)


def test_degenerate_results(attribution):
    assert "#8 " in table(attribution(3))
    assert "100.00 %" in table(attribution(["a"], relevance=[-3.0]))
    special = table(attribution(["a", "b"], special=[True, True], relevance=[1.0, 2.0]))
    assert [position for _, position, _ in rows(special)] == [1, 0]
    zero = table(attribution(["a", "b"], relevance=[0.0, -0.0]))
    assert zero.count("+0.000") == 2 and "%" not in zero
    assert len(rows(table(attribution(["a", "b"]), top=0))) == 0
    with pytest.raises(ValueError, match="top must be >= 0"):
        table(attribution(["a"]), top=-1)


def test_the_best_next_tokens(attribution):
    lines = best_table(attribution(["a", "b"]).explained).splitlines()
    assert lines[0] == "best next tokens after position 1"
    assert lines[3].split() == ["1", "'", "Paris'", "1000", "18.250", "target"]
    assert lines[6].split() == ["4", "'", "Lyon'", "1003", "15.250", "contrast"]
    assert len(lines) == 13


def test_some_of_the_tokens(attribution):
    result = attribution(["<s>", "a", "b", "c"], special=[True, False, False, False])
    relevance = np.array([5.0, 1.0, -2.0, 4.0])
    lines = strongest_tokens(result, relevance, 10, np.array([True, True, True, False]))
    assert [line.split()[2] for line in lines[1:3]] == ["'b'", "'a'"] and not any("'c'" in line for line in lines)
    assert "share: of the summed |relevance| of the 2 tokens that are not special, 3.000" in lines
    assert "special tokens, 1 in all, together +5.000:" in lines
    lines = strongest_tokens(result, relevance, 10, np.array([False, True, True, False]))
    assert lines[-1] == "share: of the summed |relevance| of 2 tokens, 3.000"
