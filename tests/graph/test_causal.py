"""Graphs of models that read in both directions: a property of the graph, kept by all that is made of it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrp_fast.graph import Graph
from lrp_fast.reading import metadata


def test_a_causal_graph_has_no_edge_from_behind(random_graph):
    both = random_graph(3, causal=False)
    assert any(both.dense(layer).triu(1).any() for layer in range(both.num_layers))
    with pytest.raises(ValueError, match="an edge into position [0-9] comes from behind it, in a causal graph: give"):
        replace(both, causal=True)
    with pytest.raises(TypeError, match="causal must be True or False, not 1"):
        replace(both, causal=1)
    assert replace(random_graph(3), causal=False).causal is False


def test_it_is_kept(random_graph, tmp_path):
    both, forwards = random_graph(3, causal=False), random_graph(4)
    for one in (both.prune(mass=0.5), both.subgraph(both.nodes != 0), both - forwards, forwards - both):
        assert not one.causal
    assert forwards.prune(mass=0.5).causal and (forwards - forwards).causal
    assert both.to_node_link()["graph"]["causal"] is False
    groups = [0, 0, 1, 1, 2, 2]
    assert forwards.group_by(groups).causal and not forwards.group_by([2, 2, 1, 1, 0, 0]).causal
    assert not both.group_by(groups).causal
    for graph in (both, forwards):
        graph.save(tmp_path / "graph.safetensors")
        loaded = Graph.load(tmp_path / "graph.safetensors")
        assert loaded.causal is graph.causal and torch.equal(loaded.columns, graph.columns)


def test_files_that_do_not_say_are_causal(random_graph, tmp_path):
    for name, causal in (("both", False), ("forwards", True)):
        graph, path = random_graph(3, causal=causal), tmp_path / f"{name}.safetensors"
        graph.save(path)
        about = {"tokens": graph.tokens, "manifest": json.loads(json.dumps(graph.manifest))}
        save_file(load_file(path), path, metadata=metadata(about, "lrp_fast.graph/1"))
    assert Graph.load(tmp_path / "forwards.safetensors").causal
    with pytest.raises(ValueError, match="comes from behind it, in a causal graph"):
        Graph.load(tmp_path / "both.safetensors")
