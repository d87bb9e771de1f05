"""What a browser makes of the page of many cases. Skipped where there is no Chromium."""

import base64
import html
import re

import pytest

from lrp_fast.report.html import as_page

COLUMNS = [
    {"key": "case", "title": "case", "kind": "case", "shown": True, "narrow": True, "at": "cases/", "linked": "strip"},
    {"key": "value", "title": "value", "kind": "signed", "shown": True, "narrow": True},
    {"key": "strip", "title": "relevance", "kind": "strip", "shown": True, "narrow": True, "at": "cases/",
     "linked": "strip", "instead": "why"},
    {"key": "why", "title": "why", "kind": "why"},
    {"key": "strongest", "title": "strongest", "kind": "token", "shown": True, "sign": "size"},
    {"key": "size", "title": "size", "kind": "signed"},
    {"key": "field.kind", "title": "kind", "kind": "text", "shown": True, "facet": True},
    {"key": "field.name", "title": "its name", "kind": "text", "shown": True, "facet": True},
    {"key": "n", "title": "n", "kind": "count", "shown": True},
]  # fmt: skip


def made(count, **more):
    """Cases 0 to ``count`` - 1, of which every third has no result."""

    def each(of):
        return [of(i) if i % 3 != 2 else None for i in range(count)]

    cells = {
        "case": [f"case {i}" for i in range(count)],
        "value": each(lambda i: (-1) ** i * i / 4),
        "strip": each(lambda i: ".YAq"),
        "why": [None if i % 3 != 2 else f"out of memory at {i}" for i in range(count)],
        "strongest": each(lambda i: f" token{i}"),
        "size": each(lambda i: float((-1) ** i)),
        "field.kind": ["negation" if i % 2 else "fact" for i in range(count)],
        "field.name": [f"name {i}" for i in range(count)],
        "n": each(lambda i: 1000 + i),
    }
    return {
        "title": "A study", "subtitle": "Of cases.", "links": [["Comparison", "comparison.html"]],
        "facts": [["Model", "a/model"]], "notes": [], "figures": [], "tables": [], "help": "Help.",
        "columns": COLUMNS, "cells": cells, "keys": [f"key-{i}" for i in range(count)],
    } | more  # fmt: skip


@pytest.fixture
def drawn(tmp_path, body_of):
    """``drawn(data, link="", script="")``: the body when the page's script has run, and then ``script``."""

    def draw(data, link="", script=""):
        page = as_page("study", data).decode()
        if script:  # as nothing else could act in the page
            page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
            page = page.replace("</body>", f"<script>{script}</script></body>")
        (tmp_path / "page.html").write_text(page)
        return body_of(tmp_path / "page.html", link)

    return draw


def cells(row):
    return [html.unescape(re.sub("<[^>]*>", "", one)) for one in re.findall(r"<t[hd]\b.*?>(.*?)</t[hd]>", row, re.S)]


def rows(body):
    return [cells(one) for one in re.findall("<tr.*?</tr>", body.split('id="rows"')[1], re.S)]


def names(body):
    return [row[0] for row in rows(body)]


def headings(body):
    return cells(body.split('id="headings"')[1].split("</tr>")[0])


def test_a_row_a_case_that_leads_to_its_page(drawn, text):
    body = drawn(made(4))
    assert headings(body) == ["case", "value", "relevance", "strongest", "kind", "its name", "n"]
    assert rows(body) == [
        ["case 0", "0", "", "␣token0", "fact", "name 0", "1,000"],
        ["case 1", "−0.2500", "", "␣token1", "negation", "name 1", "1,001"],
        ["case 2", "–", "out of memory at 2", "–", "fact", "name 2", "–"],
        ["case 3", "−0.7500", "", "␣token3", "negation", "name 3", "1,003"],
    ]
    table = body.split('id="rows"')[1]
    assert re.findall(r'href="([^"]*)"', table) == [f"cases/key-{i}.html" for i in (0, 0, 1, 1, 3, 3)]
    assert table.count('<th class="case" scope="row"') == 4 and table.count("<canvas") == 3
    assert 'aria-label="relevance, case 1"' in table
    assert table.count("quote target") == 1 and table.count("quote contrast") == 2
    assert text(body, "shown") == "4" and text(body, "links") == "Comparison"


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("-value", [4, 0, 1, 3, 2, 5]),  # what has no value comes last, either way
        ("value", [3, 1, 0, 4, 2, 5]),
        ("-field.name", [5, 4, 3, 2, 1, 0]),
        ("no such", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_address_says_how_it_is_sorted(by, order, drawn):
    body = drawn(made(6), f"#sort={by}")
    assert names(body) == [f"case {i}" for i in order]
    way = {"-": "descending"}.get(by[0], "ascending")
    assert body.count('aria-sort="none"') == (7 if by == "no such" else 6) - 1
    assert body.count(f'aria-sort="{way}"') == (by != "no such")


def test_names_are_sorted_as_people_count(drawn):
    assert names(drawn(made(12), "#sort=case"))[1:3] == ["case 1", "case 2"]


def test_a_heading_sorts_by_the_keyboard(drawn, text):
    """It is a button; again is the other way, and a third time as they came. It keeps the focus."""
    press = "document.querySelectorAll('#headings button')[1].click();"
    assert names(drawn(made(5), script=press)) == [f"case {i}" for i in (4, 0, 1, 3, 2)]
    assert names(drawn(made(5), script=2 * press)) == [f"case {i}" for i in (3, 1, 0, 4, 2)]
    body = drawn(made(5), script=3 * press + "at('help').textContent = document.activeElement.textContent;")
    assert names(body) == [f"case {i}" for i in range(5)] and text(body, "help") == "value"


def test_the_address_says_what_is_filtered(drawn, text):
    assert names(drawn(made(9), "#search=TOKEN4")) == ["case 4"]
    assert names(drawn(made(9), "#search=memory+8")) == ["case 8"]
    body = drawn(made(9), "#is-field.kind=negation&sort=-n")
    assert names(body) == [f"case {i}" for i in (7, 3, 1, 5)] and text(body, "shown") == "4 of 9"
    body = drawn(made(9), "#search=nothing")
    assert names(body) == ["No case is like that."] and text(body, "shown") == "0 of 9"


def test_filters_are_for_columns_of_few_values(drawn):
    body = drawn(made(30))
    filters = body.split('id="filters"')[1].split("</form>")[0]
    assert re.findall(r"<label><span>([^<]*)</span><select", filters) == ["kind"]  # 30 names are too many
    assert re.findall(r"<option[^>]*>([^<]*)<", filters) == ["all", "fact (15)", "negation (15)"]


def test_typing_and_choosing_filter(drawn, text):
    typed = "at('query').value = 'name 7'; at('query').dispatchEvent(new Event('input'));"
    assert names(drawn(made(9), script=typed)) == ["case 7"]
    chosen = "const s = document.querySelector('select'); s.value = '0'; s.dispatchEvent(new Event('change'));"
    tell = "document.querySelector('#help').textContent = location.hash;"
    body = drawn(made(9), script=chosen + tell)
    assert names(body) == [f"case {i}" for i in (0, 2, 4, 6, 8)]
    assert text(body, "help") == "#is-field.kind=fact"
    assert len(names(drawn(made(9), script=chosen + "at('reset').click();"))) == 9


def test_columns_are_chosen(drawn, text):
    assert headings(drawn(made(3), "#column=case&column=size")) == ["case", "size"]
    body = drawn(made(3), script="document.querySelectorAll('#columns input')[3].click();"
                 "document.querySelectorAll('#columns input')[8].click(); at('help').textContent = location.hash;")
    assert headings(body) == ["case", "value", "relevance", "why", "strongest", "kind", "its name"]
    assert text(body, "help").count("column=") == 7


def test_of_many_cases_the_first_are_drawn(drawn, text):
    body = drawn(made(3000))
    assert 100 <= len(rows(body)) < 600 and text(body, "shown") == "3,000"
    assert re.fullmatch(r"Show 100 more of 2,\d00", text(body, "more"))


def test_whatever_they_say_is_text(drawn, text, hostile):
    count = len(hostile)
    data = made(count, title=hostile[0], notes=[hostile[0]], facts=[[hostile[0], hostile[1]]])
    data["cells"] |= {"case": hostile, "field.kind": hostile[::-1], "strongest": hostile, "why": hostile}
    data["tables"] = [{"title": hostile[0], "help": hostile[0], "headings": [hostile[0], "#n"], "rows": [hostile[:2]]}]
    svg = base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg"/>').decode()
    data["figures"] = [{"title": hostile[0], "alt": hostile[0], "svg": svg}]
    body = drawn(data)
    assert len(rows(body)) == count and body.count("<img") == 1 and text(body, "title") == hostile[0]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", body)
