"""A graph in words, as plain data and as a page; what a browser makes of the page is below too."""

import base64
import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lrp_fast.report import graph_html
from lrp_fast.report.graph import as_json, counts, table
from lrp_fast.report.graph_html import write_graph_html

# Two routes to the last token: straight up from "c" (position 2), and from "a" by "b". Position 3 has no edges.
ROUTES = [(0, 2, 2, 3.0), (1, 2, 2, 2.5), (2, 2, 4, 4.0), (0, 0, 1, -1.5), (1, 1, 1, -1.0), (2, 1, 4, -0.5)]
HOSTILE = ["</script><script>alert(1)</script>", "a & b &lt;", "<|im_end|>", "🙂", "\n"]


@pytest.fixture
def routes(graph_of):
    return graph_of(ROUTES, list("abcde"), positions=(4,), dropped=(2.0, -0.75))


@pytest.fixture
def data(tmp_path):
    """``data(graph)``: what the page holds for its script."""

    def read(graph):
        write_graph_html(graph, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text("utf-8")
        return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])

    return read


def edges_of(data):
    """{(layer, source, target): weight}, in the order of the page."""
    found = {
        name: np.frombuffer(base64.b64decode(data[name]), dtype).tolist()
        for name, dtype in [
            ("positions", "<u4"), ("node_layers", "<u2"), ("node_columns", "<u4"), ("relevance", "<f4"),
            ("sources", "<u4"), ("targets", "<u4"), ("weights", "<f4"),
        ]
    }  # fmt: skip
    place = [
        (layer, found["positions"][column])
        for layer, column in zip(found["node_layers"], found["node_columns"], strict=True)
    ]
    edges = {}
    for source, target, weight in zip(found["sources"], found["targets"], found["weights"], strict=True):
        assert place[target][0] == place[source][0] + 1
        edges[(*place[source], place[target][1])] = weight
    return edges, dict(zip(place, found["relevance"], strict=True))


def test_counts_are_those_of_the_edges(routes):
    found = counts(routes)
    assert (found["nodes"], found["tokens"], found["edges"], found["crossing"]) == (7, 4, 6, 3)
    assert found["mass"] == 12.5 and found["same_position_share"] == 6.5 / 12.5
    assert found["mean_lookback"] == (2 * 4.0 + 1 * 1.5 + 3 * 0.5) / 12.5
    assert (found["dropped_positive"], found["dropped_negative"]) == pytest.approx((2.0, -0.75))


def test_the_table_says_what_was_kept_and_by_which_paths(routes):
    kept = routes.prune(threshold=1.0)
    text = table(routes, kept, routes.paths(2), "threshold 1.0")
    lines = text.splitlines()
    assert lines[0].startswith("Why ' Paris' rather than ' Lyon' after position 4?")
    assert lines[2] == "a/model, rule attnlrp, epsilon 1e-06, 5 tokens, 3 layers"
    assert re.search(r"^ +before +kept   threshold 1.0$", text, re.M)
    assert re.search(r"^edges +6 +4    66.7 %$", text, re.M)
    assert re.search(r"^sum of \|weight\| +12.50 +11.00    88.0 %$", text, re.M)
    assert re.search(r"^dropped, negative +-0.7500 +-2.250$", text, re.M)
    assert lines[-2:] == ["88.9 %  2 'c' 0-2 > 4 'e' 3", "11.1 %  0 'a' 0 > 1 'b' 1-2 > 4 'e' 3"]


def test_what_leaves_nothing_says_so(routes):
    kept = routes.prune(threshold=9.0)
    assert table(routes, kept, kept.paths(), "threshold 9").endswith(
        "nothing is left: ask for larger shares with --prune, or for none"
    )
    cut = routes.prune(threshold=3.5)
    assert table(routes, cut, cut.paths(), "").endswith("no path leads from an input token to what is explained")


def test_the_table_of_a_difference_needs_no_explanation(routes):
    assert table(routes - routes.prune(threshold=1.0), routes, [], "").startswith("Why")
    assert table(routes, routes - routes.prune(threshold=1.0), [], "").startswith(
        "A graph that does not say what was explained, 5 tokens, 3 layers"
    )


def test_no_control_character_reaches_the_terminal(graph_of, hostile):
    last = len(hostile) - 1
    graph = graph_of([(0, i, i, 1.0) for i in range(last)] + [(1, i, last, 1.0) for i in range(last)], hostile, 2)
    text = table(graph, graph, graph.paths(99), "")
    assert text.count(" > ") == last and all(char.isprintable() for char in text.replace("\n", ""))


def test_plain_data_has_counts_paths_and_measures(routes):
    kept = routes.prune(threshold=1.0)
    data = json.loads(json.dumps(as_json(routes, kept, routes.paths(1)), allow_nan=False))
    assert data["before"]["edges"] == 6 and data["kept"]["edges"] == 4
    assert data["paths"] == [{"share": pytest.approx(8 / 9), "positions": [2, 2, 2, 4], "tokens": list("ccce")}]
    assert data["measures"]["edges"] == [2, 1, 1, 0] and data["manifest"]["model"] == "a/model"


def test_the_page_holds_every_edge_the_strongest_first(data, routes):
    found = data(routes)
    edges, nodes = edges_of(found)
    assert edges == {(layer, source, target): weight for layer, source, target, weight in ROUTES}
    assert list(map(abs, edges.values())) == [4.0, 3.0, 2.5, 1.5, 1.0, 0.5]
    assert nodes == {(layer, i): routes.nodes[layer, i].item() for layer, i in nodes} and len(nodes) == 7
    assert found["tokens"] == ["a", "b", "c", "e"] and found["num_tokens"] == 5  # "d" has no nodes
    assert found["num_edges"] == 6 and found["mass"] == 12.5 and found["dropped"] == pytest.approx([2.0, -0.75])


def test_the_page_holds_so_many_edges_and_says_what_it_lacks(data, routes, monkeypatch):
    monkeypatch.setattr(graph_html, "_MOST_EDGES", 2)
    found = data(routes)
    assert list(edges_of(found)[0].values()) == [4.0, 3.0]
    assert found["tokens"] == ["c", "e"] and found["num_edges"] == 6 and found["mass"] == 12.5


def test_no_token_leaves_the_data_block(data, graph_of, tmp_path, hostile):
    tokens = HOSTILE + hostile
    graph = graph_of([(0, i, i, 1.0) for i in range(len(tokens))], tokens)
    assert data(graph)["tokens"] == tokens
    page = (tmp_path / "page.html").read_bytes().decode("utf-8")
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "alert" not in page.split("<script")[2]
    block = re.search(r'application/json">(.*?)</script>', page, re.S)[1]
    assert block.isascii() and not re.search("[<>&\x00-\x1f]", block)


def test_the_page_asks_no_host_and_makes_text_of_tokens(data, routes, tmp_path):
    data(routes)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|import\(", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write\b|setHTML|\beval\b|Function\(", page)
    assert not re.search(r"<(link|iframe|img|object|embed|base)\b|\s(src|href)=", page)
    assert "default-src 'none'; style-src 'sha256-" in page


def test_a_page_is_written_whole_or_not_at_all(graph_of, tmp_path, monkeypatch):
    graph = graph_of([(0, 0, 0, 1.0)], ["a"], positions=(0,))
    write_graph_html(graph, tmp_path / "page.html")
    before = (tmp_path / "page.html").read_text("utf-8")
    monkeypatch.setattr(graph_html, "_about", lambda graph: {"value": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_graph_html(graph, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == before and len(list(tmp_path.iterdir())) == 1


EDITED = {  # where in the manifest: what somebody wrote there
    ("explained",): "x", ("explained", "terms"): [], ("explained", "terms", 0): 1, ("explained", "kind"): 7,
    ("explained", "terms", 0, "position"): 4.0, ("explained", "terms", 0, "target", "logit"): "high",
    ("explained", "terms", 0, "target", "text"): ["a"], ("explained", "terms", 0, "contrast_logit"): {},
    ("value",): None, ("rules",): [1], ("rules", "name"): "no such rule", ("model",): 3, ("versions",): [1],
}  # fmt: skip


@pytest.mark.parametrize("place", EDITED, ids=lambda place: "-".join(map(str, place)))
def test_a_manifest_edited_by_hand_says_nothing(routes, data, place):
    manifest = json.loads(json.dumps(routes.manifest | {"versions": {"lrp_fast": "0"}}))
    *inside, last = place
    part = manifest
    for name in inside:
        part = part[name]
    part[last] = EDITED[place]
    graph = replace(routes, manifest=manifest)
    known = place == ("versions",)
    assert (data(graph)["explained"] is not None) == known
    assert ("does not say what was explained" not in table(graph, graph, [], "")) == known
    if place[0] == "explained":
        with pytest.raises(ValueError, match="does not say what was explained"):
            graph.to_attribution_graph("a")
    else:
        json.dumps(graph.to_attribution_graph("a"), allow_nan=False)


@pytest.fixture
def drawn(tmp_path, body_of):
    """``drawn(graph, link="", script="")``: the page's body in a browser, after ``script`` has run in it too."""

    def draw(graph, link="", script=""):
        path = tmp_path / "page.html"
        write_graph_html(graph, path)
        if script:  # which the page's own policy would forbid
            page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text("utf-8"))
            path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        return body_of(path, link)

    return draw


def rows(body, name):
    """The edges listed for the chosen node: (position, token, weight, share)."""
    part = body.split(f'id="{name}"')[1].split("</ol>")[0]
    cells = re.findall(r"<button.*?</button>", part)
    return [tuple(re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<span.*?</span>", row)) for row in cells]


def test_the_head_says_what_is_explained_and_what_is_missing(drawn, text, routes):
    body = drawn(routes)
    assert text(body, "question") == "Why ␣Paris rather than ␣Lyon?"
    assert "Tokens5, 4 of them here" in text(body, "facts") + body.replace("</dt><dd>", "")
    assert text(body, "left-out").startswith("Not in the graph: edges that together hand on +2.000 and −0.7500, left")
    assert "Tokens without nodes here, 1, are left out" in text(body, "left-out")
    assert text(body, "kept-name") == "6 of 6, 100 % of all |weight|"
    assert text(body, "node-name") == "No node chosen"


def test_a_page_that_lacks_edges_says_so(drawn, text, routes, monkeypatch):
    monkeypatch.setattr(graph_html, "_MOST_EDGES", 2)
    body = drawn(routes)
    assert text(body, "left-out").startswith(
        "This page holds the 2 strongest of the graph's 6 edges, 56.0 % of the sum of |weight|."
    )
    assert text(body, "kept-name") == "2 of 6, 56.0 % of all |weight|"


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0, "0 of 6, 0.00 %"),
        (300, "1 of 6, 32.0 %"),
        (320, "1 of 6, 32.0 %"),
        (321, "2 of 6, 56.0 %"),
        (1000, "6 of 6"),
    ],
)
def test_the_slider_keeps_the_strongest_edges(drawn, text, routes, share, kept):
    script = f'at("kept").value = {share}; at("kept").dispatchEvent(new Event("input"));'
    assert text(drawn(routes, script=script), "kept-name").startswith(kept)


def test_the_slider_lets_go_of_a_node_without_edges(drawn, text, routes):
    script = 'at("kept").value = {}; at("kept").dispatchEvent(new Event("input"));'
    assert text(drawn(routes, "#0,0", script.format(1000)), "node-name") == "a position 0"
    assert text(drawn(routes, "#0,0", script.format(700)), "node-name") == "No node chosen"
    pointed = POINTER + 'put("pointermove", 0, 0);' + script
    assert text(drawn(routes, script=pointed.replace("{}", "1000")), "node-name") == "a position 0"
    assert text(drawn(routes, script=pointed.replace("{}", "700")), "node-name") == "No node chosen"


def test_a_link_chooses_a_node_and_the_page_tells_of_it(drawn, text, routes):
    body = drawn(routes, "#3,4")
    relevance = routes.nodes[3, 4].item()
    assert text(body, "node-name") == "e position 4"
    assert text(body, "node-about").startswith("layer 3, the last, relevance " + ("+" if relevance > 0 else "−"))
    assert text(body, "node-about").endswith(", explained here")
    assert rows(body, "incoming") == [("2", "c", "+4.00", "88.9 %"), ("1", "b", "−0.500", "11.1 %")]
    assert rows(body, "outgoing") == [] and text(body, "outgoing") == "none"


# Where the page has drawn node (layer, position), as an event there.
POINTER = """
const put = (kind, layer, position, dx = 0) => {
  const c = positions.indexOf(position), box = at("graph").getBoundingClientRect();
  const clientX = box.left + xOf(c) + dx, clientY = box.top + yOf(layer);
  at("graph").dispatchEvent(new PointerEvent(kind, { clientX, clientY, pointerId: 1, bubbles: true }));
};
"""


def test_pointing_at_a_node_tells_of_it(drawn, text, routes):
    body = drawn(routes, script=POINTER + 'put("pointermove", 1, 2, 3);')
    assert text(body, "node-name") == "c position 2" and text(body, "readout").startswith("c position 2, layer 1")
    assert rows(body, "incoming") == [("2", "c", "+3.00", "100 %")]
    assert rows(body, "outgoing") == [("2", "c", "+2.50", "100 %")]
    gone = POINTER + 'put("pointermove", 1, 2); put("pointermove", 1, 2, 30);'
    assert text(drawn(routes, script=gone), "node-name") == "No node chosen"


def test_a_click_marks_all_that_hangs_together(drawn, text, routes):
    click = 'put("pointerdown", 1, 1); put("pointerup", 1, 1); at("left-out").textContent = JSON.stringify('
    listed = "marked && [...weight].filter((_, k) => marked.edges[k]));"
    assert json.loads(text(drawn(routes, script=POINTER + click + listed), "left-out")) == [-1.5, -1.0, -0.5]
    again = 'put("pointerdown", 1, 1); put("pointerup", 1, 1);'
    assert json.loads(text(drawn(routes, script=POINTER + again + click + listed), "left-out")) is None


def test_zoom_and_drag_move_the_tokens(drawn, text, graph_of):
    script = """
    const before = [scale, xOf(0)];
    at("in").click(); at("in").click(); at("in").click(); at("in").click();
    const closer = [scale, xOf(0)];
    put("pointerdown", 0, 0); put("pointermove", 0, 0, 60); put("pointerup", 0, 0);
    const moved = xOf(0);
    at("all").click();
    const found = [closer[0] > before[0], moved > closer[1], scale === before[0], xOf(0) === before[1]];
    at("left-out").textContent = JSON.stringify(found);
    """
    graph = graph_of([(0, i, i, 1.0) for i in range(60)], 60)
    assert json.loads(text(drawn(graph, script=POINTER + script), "left-out")) == [True, True, True, True]


def test_arrow_keys_walk_along_the_strongest_edges(drawn, text, routes):
    press = 'const press = (key) => at("graph").dispatchEvent(new KeyboardEvent("keydown", { key }));'
    for keys, name in [
        (["ArrowUp"], "e position 4"),
        (["ArrowUp", "ArrowDown"], "c position 2"),
        (["ArrowUp", "ArrowDown", "ArrowLeft"], "b position 1"),
        (["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowUp"], "e position 4"),
        (["ArrowUp", "Escape"], "No node chosen"),
    ]:
        script = press + "".join(f'press("{key}");' for key in keys)
        assert text(drawn(routes, script=script), "node-name") == name


@pytest.mark.parametrize(
    ("token", "seen"),
    [*((token, token) for token in HOSTILE[:4]), ("\n", "↵"), ("\u202edetrevo", "U+202Edetrevo"), (" a ", "␣a␣")],
)
def test_hostile_tokens_are_text(drawn, text, graph_of, token, seen):
    body = drawn(graph_of([(0, 0, 0, 1.0), (0, 0, 1, 2.0)], [token, "a"]), "#0,0")
    assert text(body, "node-name") == f"{seen} position 0"
    body = drawn(graph_of([(0, 0, 0, 1.0), (0, 0, 1, 2.0)], [token, "a"]), "#1,1")
    assert rows(body, "incoming")[0][:2] == ("0", html.escape(seen, quote=False))


@pytest.mark.parametrize("case", ["ids", "one token", "no edges", "no explanation"])
def test_degenerate_graphs_are_drawn(drawn, text, graph_of, routes, case):
    if case == "ids":
        assert text(drawn(graph_of(ROUTES, 5, positions=(4,)), "#3,4"), "node-name") == " position 4"
    elif case == "one token":
        body = drawn(graph_of([(0, 0, 0, 1.0)], ["a"], num_layers=1), "#1,0")
        assert text(body, "node-name") == "a position 0" and text(body, "kept-name").startswith("1 of 1, 100 %")
    elif case == "no edges":
        assert text(drawn(graph_of([], ["a", "b"])), "kept-name").startswith("0 of 0, – of")
    else:
        body = drawn(routes - routes.prune(threshold=1.0))
        assert text(body, "question") == "A graph that does not say what was explained"
