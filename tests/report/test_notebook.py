"""What a notebook shows: static, of bounded size, escaped, and true."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from lrp_fast.report import notebook


class Fragment(HTMLParser):
    """The elements of a fragment, all closed, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def tokens(fragment):
    """(title, style, text) of each token shown."""
    found = re.findall(r'<span title="([^"]*)"(?: style="([^"]*)")?>([^<]*)</span>', fragment)
    return [(title, style, html.unescape(text)) for title, style, text in found]


def test_the_prompt_is_coloured_and_special_tokens_are_outside_the_scale(attribution):
    special = [True] + [False] * 4
    result = attribution(["<s>", " a", "b\n", "c", "d"], [50.0, 2.0, -1.0, 0.0, -2.0], special=special, note="a <note>")
    fragment = result._repr_html_()
    assert tokens(fragment) == [
        ("position 0: +50.00, special, outside the scale", "background:#8883;opacity:.65", "<s>"),
        ("position 1: +2.000", "background:#cf5316a6", " a"),
        ("position 2: -1.000", "background:#2a71b553", "b↵\n"),
        ("position 3: +0.000", "", "c"),
        (
            "position 4: -2.000, explained here",
            "background:#2a71b5a6;text-decoration:underline 2px;text-underline-offset:4px",
            "d",
        ),
    ]
    said = Fragment(fragment).text
    assert said.startswith("Why ' Paris' rather than ' Lyon' after position 4?logit difference +3.000 = 18.25 - 15.25")
    assert "a/model, rule attnlrp, epsilon 1e-06, 5 tokens, 3 layers" in said and "note: a <note>" in said
    assert said.endswith("-2.00+2.00 · 1 special, grey and outside the scale")


def harmless(fragment):
    """Elements and attributes that act on nothing, and nothing from another host."""
    found = Fragment(fragment)
    assert {tag for tag, _ in found.elements} <= {"div", "span", "table", "tr", "td"}
    assert all({*attributes} <= {"style", "title"} for _, attributes in found.elements)
    assert not re.search(r"(?i)https?:|//|url\(|@import|javascript|<script|<style|\bon\w+=", fragment)
    fragment.encode("utf-8")
    return found


def test_no_text_becomes_markup(attribution, graph_of, hostile, candidates):
    plain = harmless(attribution(["a"] * len(hostile), note="n", model="m")._repr_html_())
    for text in ("<img src=x onerror=1>", "\ud800", '"><b>', "</div></div>"):
        best = [replace(candidates[0], text=text), *candidates[1:]]
        result = attribution(hostile, note=text, model=text)
        terms = [replace(result.explained.terms[0], target=best[0])]
        result = replace(result, explained=replace(result.explained, terms=terms, best=best))
        found = Fragment(result._repr_html_())
        assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
        assert all({*attributes} <= {"style", "title"} for _, attributes in found.elements)
        result._repr_html_().encode("utf-8")
        for sign in ("U+0000", "U+001B", "U+2028", "U+202E", "U+D800", "↵", "⇥", "∅"):
            assert sign in found.text
    graph = graph_of([(0, 0, 0, 1.0), (1, 0, 1, 1.0), (2, 1, 1, 1.0)], ["<b>", "\ud800<i>"], model="<u>")
    assert "<b>" in harmless(graph._repr_html_()).text


def test_one_token_one_character_and_no_texts(attribution):
    shown = tokens(attribution(3, relevance=[1.0, 0.0, -0.5])._repr_html_())
    assert [text for _, _, text in shown] == ["7", "8", "9"]
    harmless(attribution(["a"], relevance=[0.0])._repr_html_())
    assert "no token holds relevance" in attribution(["a"], relevance=[0.0])._repr_html_()
    every = attribution(["a", "b"], relevance=[1.0, 2.0], special=[True, True])._repr_html_()
    assert "no token that is not special holds relevance" in every
    huge = attribution(["a", "b", "c"])
    layers = torch.tensor([[1.7e308, -1.7e308, 1e308], [0, 0, 0]], dtype=torch.float64)
    assert tokens(replace(huge, layers=layers)._repr_html_())[1][1] == "background:#2a71b5a6"
    with pytest.raises(ValueError, match="layer 0, position 0 is nan"):
        replace(huge, layers=layers * torch.nan)._repr_html_()


@pytest.mark.parametrize("text", [" word", "&" * 1000, "\u202e" * 1000])
def test_a_long_context_stays_small_and_says_what_it_leaves_out(attribution, text):
    relevance = torch.full((100_000,), 0.01)
    strong = [*range(5_000, 95_000, 1_000)]
    relevance[strong] = 1.0
    relevance[70_000] = -3.0
    result = attribution([text] * 100_000, positions=(50_500,), num_layers=1, model="m" * 10**6)
    result.layers[0] = relevance
    fragment = result._repr_html_()
    assert len(fragment.encode()) < 600_000
    shown = tokens(fragment)
    assert 900 < len(shown) <= 1000
    places = {int(re.match(r"position (\d+)", title)[1]) for title, _, _ in shown}
    assert {70_000, *range(69_992, 70_009), 50_500} <= places and len(places & {*strong}) > 50
    left_out = [int(count.replace(",", "")) for count in re.findall(r"\[([\d,]+) tokens? left out\]", fragment)]
    assert sum(left_out) + len(shown) == 100_000
    missing = float(result.relevance.abs().sum() - result.relevance[sorted(places)].abs().sum())
    share = 100 * missing / float(result.relevance.abs().sum())
    assert f"{len(shown)} of 100,000 tokens shown, with {share:.1f} % of the summed |relevance| left out" in fragment


def test_a_graph_shows_its_counts_and_best_paths(graph_of):
    routes = [(0, 0, 0, 2.0), (0, 1, 1, 1.0), (1, 0, 2, 3.0), (1, 1, 2, -1.0), (2, 2, 2, 4.0)]
    fragment = graph_of(routes, ["a", " b", "c"], dropped=(2.0, -0.75))._repr_html_()
    said = harmless(fragment).text
    assert said.startswith("Why ' Paris' rather than ' Lyon' after position 2?logit difference")
    assert "nodes with edges6edges5, of them between tokens 2sum of |weight|11.00dropped+2.000 and -0.7500" in said
    paths = re.findall(r"7ch\">([^<]*)</div>", fragment)
    paths = [html.unescape(path) for path in paths]
    assert paths == ["51.4 %  0 'a' 0-1 > 2 'c' 2-3", "25.0 %  1 ' b' 0-1 > 2 'c' 2-3"]
    bare = replace(graph_of(routes, ["a", " b", "c"]), manifest={})
    assert "A graph that does not say what was explained, 3 tokens, 3 layers" in bare._repr_html_()


def test_a_graph_without_a_path_and_one_too_large_to_be_walked(graph_of, monkeypatch):
    graph = graph_of([(0, 0, 0, 2.0)], ["a", "b"])
    assert "No path leads from an input token to what is explained." in harmless(graph._repr_html_()).text
    graph.nodes[-1] = 0
    assert "No path leads" in graph._repr_html_()

    def walked(*_):
        raise AssertionError("the graph was walked")

    monkeypatch.setattr(notebook, "_WORK", 1)
    monkeypatch.setattr(type(graph), "entries", walked)
    monkeypatch.setattr(type(graph), "paths", walked)
    said = harmless(graph_of([(0, 0, 1, 2.0)], ["a", "b"], dropped=(2.0, -0.75))._repr_html_()).text
    assert "edges stored1dropped+2.000 and -0.7500" in said and "prune it, or ask for graph.paths" in said


def test_it_fits_a_narrow_notebook(attribution, graph_of, hostile, body_of, tmp_path):
    shown = [
        attribution([*hostile, "x" * 300, *"words and words"], note="long" * 100, model="m" * 300)._repr_html_(),
        attribution(300)._repr_html_(),
        graph_of([(0, 0, 0, 1.0), (1, 0, 1, 1.0), (2, 1, 1, 1.0)], ["y" * 200, "z" * 200])._repr_html_(),
    ]
    script = """for (const frame of document.querySelectorAll(".frame"))
        for (const one of frame.querySelectorAll("*"))
            if (one.getBoundingClientRect().right > frame.getBoundingClientRect().right + 1) frame.className = "wide";
        document.body.append(document.querySelectorAll(".frame").length + " fit");"""
    frames = "".join(f'<div class="frame" style="width:400px">{one}</div>' for one in shown)
    page = (
        f'<!doctype html><html><head><meta charset="utf-8"></head><body>{frames}<script>{script}</script></body></html>'
    )
    (tmp_path / "page.html").write_text(page, "utf-8")
    assert "3 fit" in body_of(tmp_path / "page.html")
