"""What a browser makes of the page. Skipped where there is no Chromium."""

import html
import re

import pytest

from lrp_fast.report.html import case_page, write_html


@pytest.fixture
def drawn(tmp_path, body_of):
    """``drawn(result, link="")``: the body after the page's script has run, its own data and script taken out."""

    def draw(result, link=""):
        write_html(result, tmp_path / "page.html")
        return body_of(tmp_path / "page.html", link)

    return draw


def classes(body):
    """The classes of the input tokens, in order."""
    return re.findall(r'<span class="(token[^"]*)" data-i=', body)


def test_relevance_sets_the_colour_and_special_tokens_do_not_count(drawn, text, attribution):
    special = [True] + [False] * 4
    body = drawn(attribution(["<s>", "a", "b", "c", "d"], relevance=[50.0, 2.0, -1.0, 0.0, -2.0], special=special))
    assert classes(body) == ["token special", "token p24", "token n12", "token p0", "token n24 explained"]
    assert text(body, "low") == "−2.00" and text(body, "high") == "+2.00"
    lists = [body.split(f'id="{name}"')[1].split("</ol>")[0] for name in ("positive", "negative")]
    assert [re.findall(r'data-i="(\d+)"', each) for each in lists] == [["1"], ["4", "2"]]
    assert "40.0 %" in text(body, "positive")


def test_sources_are_added_up(drawn, attribution):
    result = attribution([*"abcde"], relevance=[3.0, -1.0, 0.5, 0.25, 0.25])
    assert '<section id="sources-part" hidden' in drawn(result)
    body = drawn(result.by_source({"x<b>": (0, 2), "y": (3, 5)}))
    assert '<section id="sources-part">' in body
    rows = re.findall(r"<tr>(.*?)</tr>", body.split('id="sources"')[1].split("</table>")[0].split("<tbody")[1])
    cells = [[re.sub("<[^>]*>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", row)] for row in rows]
    assert [[html.unescape(one) for one in row] for row in cells] == [
        ["x<b>", "2", "+2.000", "4.000", "80.0 %"],
        ["y", "2", "+0.5000", "0.5000", "10.0 %"],
        ["(rest)", "1", "+0.5000", "0.5000", "10.0 %"],
    ]


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("logit", "Why ␣Paris?", "Logit +18.25, for the token after position 2, the last."),
        ("difference", "Why ␣Paris rather than ␣Lyon?", "Logit difference +3.000 = 18.250 − 15.250, for"),
        ("mean", "Why ␣Paris rather than the mean of all logits?", "Logit difference +19.75 = 18.250 − (−1.500), for"),
        ("top", "Why ␣Paris rather than the mean of the 2 best other tokens?", "Logit difference +4.500 = 18.250 − 13"),
        ("logprob", "Why ␣Paris?", "Log-probability −0.2500 = 18.250 − 18.500, for the token"),
        ("function", "Why this value of a function of the logits?", "Value +18.25, for the token"),
    ],
)
def test_every_kind_says_what_is_explained(drawn, text, attribution, kind, question, answer):
    body = drawn(attribution(["a", "b", "c"], kind=kind, note="a <b>note</b>"))
    assert text(body, "question") == question
    assert text(body, "answer").startswith(answer)
    assert text(body, "note") == "a <b>note</b>"


def test_a_span_lists_its_positions(drawn, text, attribution):
    body = drawn(attribution(["a", "b", "c", "d"], positions=(1, 2, 3)))
    assert text(body, "answer") == "Sum of 3 logit differences +9.000, for the tokens after positions 1 to 3."
    assert text(body, "terms").count("+3.000") == 3
    assert [name.endswith("explained") for name in classes(body)] == [False, True, True, True]


def test_the_readout_tells_of_one_token(drawn, text, attribution):
    result = attribution(["<s>", "a", "b"], relevance=[50.0, 3.0, -1.0], special=[True, False, False])
    body = drawn(result, "#2")
    assert text(body, "readout") == "position 2bid 9−1.00025.0 % of all |relevance|"
    assert classes(body)[2].endswith("now") and 'style="left: 66.66' in body
    assert text(drawn(result, "#0"), "readout") == "position 0<s>id 7+50.00special, outside the scale"


def test_newlines_are_seen_and_end_their_line(drawn, text, attribution):
    body = drawn(attribution(["a", "\n", "b", ".\n\n", "c"]))
    assert re.findall(r'<div class="line" data-at="(\d)">', body) == ["0", "2", "4"]
    assert body.split('id="text"')[1].split('id="text-help"')[0].count("↵") == 3


def test_hostile_tokens_are_text(drawn, text, attribution, hostile):
    body = drawn(attribution(hostile, note=hostile[0]))
    assert len(classes(body)) == len(hostile)
    assert "<img" not in body and hostile[0] in html.unescape(body)
    for sign in ("U+0000", "U+001B", "U+009B", "U+2028", "U+202E", "U+2066", "U+D800", "↵", "⇥", "∅"):
        assert sign in body
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", body)


@pytest.mark.parametrize("case", ["ids", "one token", "all special", "all zero"])
def test_degenerate_results_are_drawn(drawn, text, attribution, case):
    if case == "ids":
        body = drawn(attribution(3))
        assert text(body, "text").split() == ["7", "8", "9"]
    elif case == "one token":
        body = drawn(attribution(["a"], relevance=[1.0], num_layers=1))
        assert classes(body) == ["token p24 explained"] and "100 %" in text(body, "positive")
    elif case == "all special":
        body = drawn(attribution(["a", "b"], special=[True, True]))
        assert classes(body) == ["token special", "token special explained"] and text(body, "positive") == "none"
    else:
        body = drawn(attribution(["a", "b"], relevance=[0.0, 0.0]), "#0")
        assert classes(body) == ["token p0 now", "token p0 explained"] and text(body, "high") == "0"
        assert text(body, "readout") == "position 0aid 70– of all |relevance|"


def test_of_several_the_address_says_which_is_drawn(drawn, text, attribution):
    several = [attribution(["a", "b"], relevance=[1.0, value]) for value in (2.0, -3.0)]
    assert '<nav id="choices-part" hidden' in drawn(several[0])
    for link, value in (("", "+2.000"), ("#choice-1", "−3.000"), ("#choice-7", "−3.000")):
        body = drawn(several, link)
        assert 'id="choices-part" hidden' not in body and body.count("<button") >= 2
        assert f"{value}" in text(body, "strongest") or value.removesuffix("0") in text(body, "strongest")
        buttons = body.split('id="choices"')[1].split("</div>")[0]
        assert buttons.count('aria-current="true"') == 1
        assert buttons.index("aria-current") > (buttons.index("</button>") if value == "−3.000" else -1)


def test_a_page_among_others_leads_to_them_and_says_which_it_is(drawn, text, attribution, body_of, tmp_path):
    assert '<nav id="links" aria-label="Pages" hidden' in drawn(attribution(["a", "b"]))
    facts = [("Case", "<b>\u202e"), ("kind", "fact")]
    (tmp_path / "case.html").write_bytes(case_page(attribution(["a", "b"]), [("All cases", "../index.html")], facts))
    body = body_of(tmp_path / "case.html")
    assert '<a href="../index.html">All cases</a>' in body and text(body, "links") == "All cases"
    assert text(body, "facts").endswith("Case<b>U+202Ekindfact")
