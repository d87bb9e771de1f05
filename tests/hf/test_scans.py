"""Graphs of models whose layers carry a state: of several prompts, of several targets, of layers that are run again."""

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute, attribute_batch
from tests import decoders

pytestmark = decoders.RECENT
ALL = GraphSpec(topk=10**6)
IDS = torch.randint(3, 97, (1, 23), generator=torch.Generator().manual_seed(5))
MODELS = ["falcon_h1", "qwen3_next", "lfm2", "xlstm"]


def gap(found, truth):
    edges = ((found.graph.dense(i) - truth.graph.dense(i)).abs().max() for i in range(truth.graph.num_layers))
    return max(*edges, (found.layers - truth.layers).abs().max()) / truth.layers.abs().max()


@pytest.mark.parametrize("model_type", MODELS)
def test_prompts_in_one_pass(model_type):
    model, rows = decoders.build(model_type), [IDS[0, :9], IDS[0], IDS[0, 3:17]]
    for row, found in zip(rows, attribute_batch(model, rows, target=3, contrast=5, graph=ALL), strict=True):
        assert gap(found, attribute(model, row, 3, 5, graph=ALL)) <= 1e-12


@pytest.mark.parametrize("model_type", MODELS)
def test_several_targets_of_layers_that_wait_in_a_file(model_type):
    model = decoders.build(model_type)
    given = {"targets": 2, "graph": ALL}
    tight = Memory(host_budget=lrp_fast.plan(model, IDS.shape[1], **given).least["cpu"])
    for target, found in zip([3, 8], attribute(model, IDS, [3, 8], 5, graph=ALL, memory=tight), strict=True):
        assert gap(found, attribute(model, IDS, target, 5, graph=ALL)) <= 1e-12


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("model_type", MODELS)
def test_what_leaves_a_node_is_its_relevance(model_type, rule):
    """Where every row that carries relevance has its edges."""
    found = attribute(decoders.build(model_type), IDS, 3, 5, rule=rule, graph=ALL)
    for layer in range(found.graph.num_layers):
        left = found.graph.dense(layer).sum(0)
        assert (left - found.layers[layer]).abs().max() <= 1e-11 * found.layers[layer].abs().max()


def test_the_strongest_edges_are_kept_and_the_others_counted():
    model = decoders.build("falcon_h1")
    whole, few = (attribute(model, IDS, 3, 5, graph=GraphSpec(topk=k)).graph for k in (10**6, 2))
    for layer in range(whole.num_layers):
        edges, kept = whole.dense(layer), few.dense(layer)
        edges.fill_diagonal_(0), kept.fill_diagonal_(0)
        assert (kept.ne(0).sum(-1) <= 2).all()
        assert ((kept == 0) | ((kept - edges).abs() <= 1e-12 * edges.abs().max())).all()


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "minimax", "qwen3_next", "recurrent_gemma", "xlstm"])
def test_edges_of_16_bit_models_add_up_as_well_as_these_round(model_type):
    """By two routes, on each of which numbers of 8 bits are rounded a few times."""
    graph = attribute(decoders.build(model_type, torch.bfloat16), IDS, 3, 5, graph=ALL).graph
    for layer in range(graph.num_layers):
        edges = graph.dense(layer)
        assert (edges.sum(0) - graph.nodes[layer]).abs().max() <= 2**-6 * edges.abs().sum(0).max()
