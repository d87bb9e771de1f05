"""What `write_html` writes, as a parser reads it; what a browser makes of it is the matter of test_browser.py."""

import base64
import hashlib
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lrp_fast.report.html import write_html


class Page(HTMLParser):
    """The elements of a page, and the contents of its style and script elements, in order."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.inside, self.raw = text, [], None, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("style", "script"):
            self.inside = tag
            self.raw.append((tag, ""))

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data):
        if self.inside:
            tag, before = self.raw[-1]
            self.raw[-1] = (tag, before + data)

    @property
    def data(self):
        return json.loads(self.raw[1][1])


@pytest.fixture
def page(tmp_path):
    def write(result):
        write_html(result, tmp_path / "page.html")
        return Page((tmp_path / "page.html").read_bytes().decode("utf-8"))

    return write


def test_no_token_leaves_the_data_block(page, attribution, hostile):
    harmless = page(attribution(["a"] * len(hostile)))
    found = page(attribution(hostile, note=hostile[0], model=hostile[0]))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in harmless.elements]
    assert [tag for tag, _ in found.raw] == ["style", "script", "script"]
    assert found.data["tokens"] == hostile
    assert found.data["explained"]["note"] == found.data["model"] == hostile[0]
    # Nor does the block hold what a browser, less forgiving than Python's parser, gives a meaning of its own.
    assert found.raw[1][1].isascii() and not re.search("[<>&\x00-\x1f]", found.raw[1][1])


def test_no_target_leaves_the_data_block(page, attribution, hostile):
    result = attribution(["a", "b"])
    explained = result.explained
    best = [replace(token, text=text) for token, text in zip(explained.best, hostile, strict=False)]
    terms = [replace(explained.terms[0], target=best[0], contrast=best[1], runner_up=best[2])]
    found = page(replace(result, explained=replace(explained, terms=terms, best=best)))
    assert [tag for tag, _ in found.raw] == ["style", "script", "script"]
    assert found.data["explained"]["terms"][0]["target"]["text"] == hostile[0]


def test_the_page_asks_no_host(page, attribution):
    found = page(attribution(["a", "b"]))
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|import\(", found.text)
    for tag, attributes in found.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)


def test_only_its_own_style_and_script_may_act(page, attribution):
    found = page(attribution(["a", "b"]))
    (policy,) = [attributes["content"] for _, attributes in found.elements if "http-equiv" in attributes]

    def name(source):
        return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"

    (_, css), _, (_, js) = found.raw
    assert policy == f"default-src 'none'; style-src {name(css)}; script-src {name(js)}"


def test_tokens_reach_the_dom_as_text_only(page, attribution):
    js = page(attribution(["a"])).raw[2][1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write\b|setHTML|\beval\b|Function\(", js)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_embedded_layers_are_the_relevances(page, attribution, dtype):
    result = attribution(["a", "b", "c"], special=[True, False, False])
    result = replace(result, layers=result.layers.to(dtype).requires_grad_().t().contiguous().t())
    data = page(result).data
    found = np.frombuffer(base64.b64decode(data["layers"]), "<f4").reshape(data["num_layers"] + 1, len(data["ids"]))
    np.testing.assert_array_equal(found, result.layers.detach().float().numpy())
    assert data["ids"] == [7, 8, 9] and data["special"] == [0] and data["explained"] == asdict(result.explained)
    assert data["rule"] == "attnlrp, epsilon 1e-06"


def test_an_infinite_logit_stays_json(page, attribution, candidates):
    result = attribution(["a"])
    best = [*candidates[:9], replace(candidates[9], logit=float("-inf"))]
    data = page(replace(result, explained=replace(result.explained, best=best))).data
    assert data["explained"]["best"][9]["logit"] is None


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_relevance_that_is_no_number_is_named(tmp_path, attribution, wrong):
    result = attribution(["a", "b", "c"])
    result.layers[2, 1] = wrong
    with pytest.raises(ValueError, match="layer 2, position 1"):
        write_html(result, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_long_context_stays_small(page, attribution):
    text = page(attribution([" relevance"] * 10_000, num_layers=30)).text
    assert len(text.encode()) < 2_500_000


def test_several_that_are_too_large_for_one_page_are_refused(tmp_path, attribution, monkeypatch):
    result = attribution(["a", "b"])
    monkeypatch.setattr("lrp_fast.report.html.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="a page of these 9 explanations takes 0 MiB, more than the 0 that one may"):
        write_html([result] * 9, tmp_path / "page.html")
    with pytest.raises(ValueError, match="nothing to show: the list of results is empty"):
        write_html([], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
