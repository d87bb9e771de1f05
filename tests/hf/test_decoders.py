"""Every decoder of transformers: against rules that are applied by detaching to the model as it is, or refused."""

from contextlib import nullcontext

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute
from lrp_fast.hf import check, decoder_layers
from tests import decoders
from tests.oracles.functional import explained
from tests.oracles.wide import wide

pytestmark = decoders.TABLE
ALL = GraphSpec(topk=10**6)
IDS = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))
ALL_RULES = ["attnlrp", "cp", "gradient"]


def _has_graph(model_type, rule):
    fading = model_type in decoders.FADING and rule == "gradient"
    return not fading and model_type not in decoders.WITHOUT_GRAPH


def _marks(model_type, rule, left_out):
    marks = [pytest.mark.shows("decoder"), *[pytest.mark.shows("edges")] * _has_graph(model_type, rule)]
    return [*marks, pytest.mark.again] if left_out else marks


def _rules(model_type, number):
    """With whether `make test` leaves it out: each family is there once, the rules in turn that show most."""
    rules = decoders.RULES.get(model_type, ALL_RULES)
    most = [rule for rule in rules if _has_graph(model_type, rule)] or rules
    return [(rule, rule != most[number % len(most)]) for rule in rules]


RULES = [
    pytest.param(one, rule, marks=_marks(one, rule, left_out))
    for number, one in enumerate(decoders.COVERED)
    for rule, left_out in _rules(one, number)
]


@pytest.mark.parametrize(("model_type", "rule"), RULES)
def test_nodes_and_edges_are_those_of_detached_rules(model_type, rule):
    model, plain = (decoders.build(model_type) for _ in range(2))
    check(plain)
    asked = (IDS, 3, 5, rule, _has_graph(model_type, rule))
    graph = ALL if _has_graph(model_type, rule) else None
    with wide(model, plain) if model_type in decoders.IN_FLOAT32 else nullcontext():
        value, nodes, edges = explained(plain, decoder_layers(plain), *asked)
        found = attribute(model, IDS, 3, 5, rule=rule, graph=graph)
    allowed = 1e-12 if rule == "gradient" else 1e-11
    assert abs(found.value - value) <= max(allowed, 1e-12) * max(abs(value), 1)
    # Of plain gradients, norms pass on less than what cancels in them, which is of the value's size.
    least = abs(value) if rule == "gradient" else 0.0
    assert (found.layers - nodes).abs().max() <= allowed * max(nodes.abs().max(), least)
    for layer, matrix in enumerate(edges if graph else []):
        assert (found.graph.dense(layer) - matrix).abs().max() <= 10 * allowed * max(matrix.abs().max(), least)


@pytest.mark.shows("no edges")
@pytest.mark.parametrize("model_type", [*decoders.FADING, *decoders.WITHOUT_GRAPH])
def test_where_no_closed_form_is_known_a_graph_is_refused(model_type):
    why = "(no closed form is known of the edges of its|it reads more than|it holds [02] attentions)"
    with pytest.raises(ValueError, match=f"{why} .*: leave the graph out"):
        attribute(decoders.build(model_type), IDS, 3, 5, rule="gradient", graph=ALL)


@pytest.mark.parametrize(
    ("model_type", "rule"),
    [("falcon_h1", "attnlrp"), ("qwen3_next", "attnlrp"), ("xlstm", "attnlrp"), ("lfm2", "cp")],
)
def test_edges_between_blocks_of_tokens(model_type, rule):
    ids = torch.randint(3, 97, (1, 70), generator=torch.Generator().manual_seed(2))
    model, plain = (decoders.build(model_type) for _ in range(2))
    check(plain)
    _, _, edges = explained(plain, decoder_layers(plain), ids, 3, 5, rule)
    graph = attribute(model, ids, 3, 5, rule=rule, graph=ALL).graph
    for layer, matrix in enumerate(edges):
        assert (graph.dense(layer) - matrix).abs().max() <= 1e-10 * matrix.abs().max()


@pytest.mark.parametrize("model_type", ["dbrx", "flex_olmo"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixtures_without_a_norm_before_in_16_bits(dtype, model_type):
    """Their layers hand their mixtures what is as wide as the residual stream, float32 when it runs again. Of what a
    node is explained by, three layers of five products each round."""
    found = attribute(decoders.build(model_type, dtype), IDS, 3, 5)
    truth = attribute(decoders.build(model_type, dtype).double(), IDS, 3, 5).layers
    assert (found.layers - truth).abs().max() <= 16 * torch.finfo(dtype).eps * truth.abs().max()


@pytest.mark.shows("waiting")
@pytest.mark.parametrize("model_type", decoders.COVERED)
def test_what_waits_in_files_changes_nothing(model_type):
    model = decoders.build(model_type)
    found = attribute(model, IDS, 3, 5)
    tight = Memory(host_budget=lrp_fast.plan(model, IDS.shape[1]).least["cpu"])
    allowed = 1e-5 if model_type in decoders.IN_FLOAT32 else 1e-11  # as they are
    assert (attribute(model, IDS, 3, 5, memory=tight).layers - found.layers).abs().max() <= allowed


@pytest.mark.shows("refused")
@pytest.mark.parametrize("model_type", decoders.REFUSED)
def test_a_decoder_without_a_rule_is_refused(model_type):
    _, words = decoders.REFUSED[model_type]
    with pytest.raises(lrp_fast.UnsupportedModuleError, match=words):
        check(decoders.blank(model_type))


def test_none_is_left_out():
    assert {*decoders.COVERED, *decoders.REFUSED, *decoders.WRAPPERS} == {*decoders.ALL}
    assert len(decoders.COVERED) + len(decoders.REFUSED) + len(decoders.WRAPPERS) == 189
