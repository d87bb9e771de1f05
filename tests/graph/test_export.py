"""Exports against the graph's dense matrices, and the viewers' file against what its schema and its readers demand."""

import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch

from lrp_fast.explained import Explained, Term, Token
from lrp_fast.graph import export

HOSTILE = ["</script>", "&amp;", "<|im_end|>", "🙂", "\n", '"quoted" (p=', "\ud800"]


def expected(graph, matrices):
    """{((layer, source), (layer + 1, target)): weight}, and the nodes that hold an edge."""
    edges = {
        ((layer, source), (layer + 1, target)): weight
        for layer, matrix in enumerate(matrices(graph))
        for target, row in enumerate(matrix)
        for source, weight in enumerate(row)
        if weight
    }
    return edges, {node for edge in edges for node in edge}


def test_networkx_holds_every_edge_once(graph, matrices):
    networkx = pytest.importorskip("networkx")
    found = graph.to_networkx()
    edges, nodes = expected(graph, matrices)
    assert isinstance(found, networkx.DiGraph) and set(found.nodes) == nodes and set(found.edges) == set(edges)
    for (source, target), weight in edges.items():
        assert found.edges[source, target] == {"weight": pytest.approx(weight), "self_edge": source[1] == target[1]}
    for layer, position in nodes:
        about = {"layer": layer, "position": position, "relevance": graph.nodes[layer, position].item()}
        assert found.nodes[layer, position] == about | {"token": graph.tokens[position]}
    assert found.graph["manifest"] == graph.manifest
    lost = graph.dropped_mass.double().sum(0) + graph.dropped_self.double().sum(0)
    assert found.graph["dropped_mass"] == pytest.approx(lost.tolist())


def test_pandas_holds_every_edge_once(graph, matrices):
    pytest.importorskip("pandas")
    edges, nodes = graph.to_pandas()
    wanted, wanted_nodes = expected(graph, matrices)
    assert list(edges) == ["layer", "source", "target", "weight", "self_edge"]
    found = {((row.layer, row.source), (row.layer + 1, row.target)): row.weight for row in edges.itertuples()}
    assert len(edges) == len(found) and found == pytest.approx(wanted)
    assert (edges.self_edge == (edges.source == edges.target)).all()
    assert {(row.layer, row.position) for row in nodes.itertuples()} == wanted_nodes and len(nodes) == len(wanted_nodes)
    for row in nodes.itertuples():
        assert row.relevance == graph.nodes[row.layer, row.position].item() and row.token == graph.tokens[row.position]


def test_node_link_is_what_networkx_reads(graph):
    networkx = pytest.importorskip("networkx")
    data = json.loads(json.dumps(graph.to_node_link(), allow_nan=False))
    found = networkx.node_link_graph(data, edges="links")
    wanted = networkx.relabel_nodes(graph.to_networkx(), lambda node: f"{node[0]}:{node[1]}")
    assert dict(found.nodes(data=True)) == dict(wanted.nodes(data=True))
    assert sorted(found.edges(data=True), key=str) == sorted(wanted.edges(data=True), key=str)
    assert found.is_directed() and not found.is_multigraph() and found.graph == wanted.graph


def test_without_tokens_nodes_have_none(random_graph):
    graph = replace(random_graph(0), tokens=None)
    assert all("token" not in node for node in graph.to_node_link()["nodes"])
    pytest.importorskip("pandas")
    assert list(graph.to_pandas()[1]) == ["layer", "position", "relevance"]


def test_hostile_tokens_and_infinite_logits_stay_json(random_graph):
    graph = random_graph(0, tokens=len(HOSTILE), density=1.0)
    graph = replace(graph, tokens=HOSTILE, manifest={"best": [{"logit": -math.inf}]})
    data = json.loads(json.dumps(graph.to_node_link(), allow_nan=False))
    assert {node["token"] for node in data["nodes"]} == set(HOSTILE)
    assert data["graph"]["manifest"] == {"best": [{"logit": None}]}


@pytest.mark.parametrize("module", ["networkx", "pandas"])
def test_a_missing_package_is_named_with_its_extra(random_graph, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is not installed: pip install {module}, the extra \[{module}\]"):
        getattr(random_graph(0), f"to_{module}")()


def test_too_many_edges_are_refused(explained_graph, monkeypatch):
    graph = explained_graph()
    count = len(export.edge_list(graph).weights)
    monkeypatch.setattr(export, "_MOST_EDGES", count)
    graph.to_node_link()
    monkeypatch.setattr(export, "_MOST_EDGES", count - 1)
    for call in (graph.to_node_link, graph.to_networkx, lambda: graph.to_attribution_graph("a")):
        with pytest.raises(
            ValueError, match=rf"has {count} edges, and more than {count - 1} are too many.*prune it first"
        ):
            call()


# The attribution-graph JSON. Names, types and what is required are those of Neuronpedia's graph-schema.json (version
# 1.0.0, apps/webapp/app/api/graph/graph-schema.json in hijohnnylin/neuronpedia), the rest is what the code of its
# viewer (apps/webapp/app/[modelId]/graph/utils.ts) and of circuit-tracer's (frontend/graph_models.py and
# frontend/assets/attribution_graph/util-cg.js in safety-research/circuit-tracer) needs not to fail.

METADATA = {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str, "transcoder_list": list}
NODE = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
LINK = {"source": str, "target": str, "weight": float}


def has_types(entry, types):
    assert all(type(entry[name]) is kind for name, kind in types.items()), entry


@pytest.fixture
def explained_graph(random_graph):
    """A graph that says what was explained; its last token holds the relevance of the last layer."""

    def build(kind="difference", positions=(-1,), tokens=6, seed=0, **more):
        graph = random_graph(seed, tokens=tokens, **more)
        target, other = Token(11, " blue", 24.75, 0), Token(12, ' "red" (p=', 21.5, 1)
        contrast = other if kind == "difference" else None
        logit = {"logit": None, "difference": 21.5, "mean": -1.25, "top": 20.0}[kind]
        terms = [Term(position % tokens, target, contrast, logit, other) for position in positions]
        for term in terms:
            graph.nodes[-1, term.position] = 3.25
        explained = Explained(kind, terms, [target, other], "", others=2 if kind == "top" else None)
        manifest = {
            "model": "a/model", "rules": {"name": "cp"}, "explained": asdict(explained), "value": 3.25,
            "versions": {"lrp_fast": "0.1.0"},
        }  # fmt: skip
        return replace(graph, manifest=manifest)

    return build


def viewed(graph, **arguments):
    """The export as a viewer reads it, checked against the schema."""
    data = json.loads(json.dumps(graph.to_attribution_graph("a-slug", **arguments), allow_nan=False))
    assert set(data) == {"metadata", "qParams", "nodes", "links"}
    has_types(data["metadata"], METADATA)
    assert all(type(token) is str for token in data["metadata"]["prompt_tokens"])
    has_types(
        data["qParams"], {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}
    )
    for node in data["nodes"]:
        has_types(node, NODE)
        assert 0 <= node["ctx_idx"] < len(data["metadata"]["prompt_tokens"])
        assert "," not in node["node_id"] and "supernode" not in node["node_id"]  # both join and search these names
    for link in data["links"]:
        has_types(link, LINK)
    names = {node["node_id"] for node in data["nodes"]}
    assert len(names) == len(data["nodes"]) and data["qParams"]["clickedId"] in names
    assert {link[end] for link in data["links"] for end in ("source", "target")} <= names
    # One node a place, as the viewers know places; else nodes would be taken for one.
    assert len({(node["layer"], node["feature"], node["ctx_idx"]) for node in data["nodes"]}) == len(names)
    above = [int(node["layer"]) for node in data["nodes"] if node["feature_type"] not in ("logit", "embedding")]
    assert max(above) > 0  # otherwise Neuronpedia's viewer stops with "No layer found"
    for node in data["nodes"]:
        assert (node["layer"] == "E") == (node["feature_type"] == "embedding")
    for node in logits(data):
        assert int(node["layer"]) == graph.num_layers + 1 and "(p=" in node["clerp"]
    return data


def logits(data):
    return [node for node in data["nodes"] if node["feature_type"] == "logit"]


@pytest.mark.parametrize("seed", range(4))
def test_viewers_get_every_edge_with_its_sign(explained_graph, matrices, seed):
    graph = explained_graph(seed=seed, layers=4, exact=False)
    data = viewed(graph)
    positions = data["metadata"]["generation_settings"]["positions"]
    place = {
        node["node_id"]: (0 if node["layer"] == "E" else int(node["layer"]), positions[node["ctx_idx"]])
        for node in data["nodes"]
    }
    inner = [link for link in data["links"] if place[link["target"]][0] <= graph.num_layers]
    found = {(place[link["source"]], place[link["target"]]): link["weight"] for link in inner}
    edges, nodes = expected(graph, matrices)
    assert len(found) == len(inner) and found == pytest.approx(edges) and min(found.values()) < 0
    inside = {place[node["node_id"]] for node in data["nodes"] if node["feature_type"] != "logit"}
    assert inside == nodes | {(graph.num_layers, graph.num_tokens - 1)}


@pytest.mark.parametrize(
    ("kind", "weights", "labels"),
    [
        ("logit", [24.75], ['Output " blue" (p=?), logit 24.75, rank 1']),
        ("difference", [24.75, -21.5], ['Output " blue" (p=', 'Output " "red" (p=" (p=?), logit 21.5, rank 2, the']),
        ("mean", [24.75, 1.25], ['Output " blue" (p=', 'Output "mean of all logits" (p=?), the contrast']),
        ("top", [24.75, -20.0], ['Output " blue" (p=', 'Output "mean of the 2 best others" (p=?), the contrast']),
    ],
)
def test_target_and_contrast_are_logits(explained_graph, kind, weights, labels):
    graph = explained_graph(kind)
    data = viewed(graph)
    found = logits(data)
    assert [node["is_target_logit"] for node in found] == [True, False][: len(weights)]
    assert all(node["clerp"].startswith(label) for node, label in zip(found, labels, strict=True))
    links = {link["target"]: link for link in data["links"]}
    assert [links[node["node_id"]]["weight"] for node in found] == weights
    (source,) = {links[node["node_id"]]["source"] for node in found}
    (last,) = [node for node in data["nodes"] if node["node_id"] == source]
    assert last["layer"] == str(graph.num_layers) and "position 5, 't5', relevance +3.25" in last["clerp"]
    assert data["qParams"]["clickedId"] == found[0]["node_id"]
    if kind == "difference":  # then what the last node hands on is what it holds
        assert sum(weights) == graph.nodes[-1, -1].item()


def test_a_span_has_logits_for_each_position(explained_graph):
    found = logits(viewed(explained_graph(positions=(2, 5))))
    assert len(found) == 4 and len({node["ctx_idx"] for node in found}) == 2


def test_only_tokens_with_nodes_are_columns(explained_graph):
    graph = explained_graph(tokens=9, density=0.9)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, [1, 2, 6, 8]] = True
    graph = graph.subgraph(mask)
    data = viewed(graph)
    kept = sorted({node for _, node in expected_positions(graph)} | {8})
    settings = data["metadata"]["generation_settings"]
    assert settings["positions"] == kept and set(kept) <= {1, 2, 6, 8}
    assert settings["pruned"] == [{"subgraph": {"nodes": 16}}]
    assert data["metadata"]["prompt_tokens"] == [f"t{i}" for i in kept]
    assert data["metadata"]["prompt"] == " ... t1t2 ... t6 ... t8"


def expected_positions(graph):
    layers, positions = export.held(graph, export.edge_list(graph)).nonzero()
    return set(zip(layers.tolist(), positions.tolist(), strict=True))


def test_one_token_is_no_feature_of_most_tokens(explained_graph):
    """circuit-tracer's viewer removes what occurs at more than two thirds of the tokens."""
    data = viewed(explained_graph(tokens=1))
    assert data["metadata"]["prompt_tokens"] == ["t0", ""] and data["metadata"]["prompt"] == "t0"


def test_names_can_be_given(explained_graph):
    metadata = viewed(explained_graph())["metadata"]
    assert (metadata["slug"], metadata["scan"]) == ("a-slug", "a/model")
    assert metadata["info"]["generator"] == {"name": "lrp_fast", "version": "0.1.0"}
    assert viewed(explained_graph(), scan="my-model")["metadata"]["scan"] == "my-model"


def test_a_graph_that_is_no_explanation_is_refused(explained_graph):
    graph = explained_graph()
    with pytest.raises(ValueError, match="does not say what was explained"):
        (graph - explained_graph(seed=1)).to_attribution_graph("a")
    with pytest.raises(ValueError, match="does not say what was explained"):
        graph.group_by([0, 0, 0, 0, 1, 1]).to_attribution_graph("a")
    short = explained_graph(tokens=3)
    with pytest.raises(ValueError, match="the manifest explains position 5 of 3 tokens"):
        replace(short, manifest=graph.manifest).to_attribution_graph("a")
