"""Edges that skip layers: against the closed form where it holds, one pass a row, and what they must add up to."""

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, Memory, Rules, attribute, between, patched
from lrp_fast.hf import decoder_layers

families = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
RULES = ["attnlrp", "cp", Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: getattr(rule, "name", rule))


@families
@rules
def test_adjacent_layers_have_the_edges_of_the_graph(family, rule, tiny, ids):
    model = tiny(family, torch.float64)
    graph = attribute(model, ids, 3, 5, rule=rule, graph=GraphSpec(topk=1000)).graph
    for layer in range(3):
        found = between(model, ids, layer, layer + 1, range(23), 3, 5, rule=rule)
        assert (found - graph.dense(layer)).abs().max() <= 1e-12 * found.abs().max()


@families
@rules
def test_two_layers_apart_it_is_a_backward_pass_from_one_row(family, rule, tiny, ids):
    model, outputs, expected = tiny(family, torch.float64), [], []

    def keep(module, args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)
        outputs[-1].retain_grad()

    with patched(model, rule):
        handle = decoder_layers(model)[1].register_forward_hook(keep)
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False).logits[0, -1]
        handle.remove()
        (logits[3] - logits[5]).backward(retain_graph=True)
        g = outputs[0].grad.clone()
        for row in (22, 7, 0):
            only = torch.zeros_like(g)
            only[:, row] = g[:, row]
            expected.append((x * torch.autograd.grad(outputs[0], x, only, retain_graph=True)[0]).sum(-1)[0].detach())
    found = between(model, ids, 0, 2, [22, 7, 0], 3, 5, rule=rule)
    for one, truth in zip(found, expected, strict=True):
        assert (one - truth).abs().max() <= 1e-12 * truth.abs().max()


@families
def test_over_all_rows_a_node_passes_on_its_relevance(family, tiny, ids):
    model = tiny(family, torch.float64)
    nodes = attribute(model, ids, 3, 5).layers
    tight = Memory(host_budget=lrp_fast.plan(model, 23, targets=23).least["cpu"])
    for source, target in ((0, 3), (0, 2), (1, 3)):
        for memory in (None, tight):
            found = between(model, ids, source, target, range(23), 3, 5, memory=memory)
            assert (found.sum(0) - nodes[source]).abs().max() <= 1e-12 * nodes.abs().max()
            assert not found.triu(1).any()  # none from the future


def test_rows_count_from_the_end_and_come_in_their_order(tiny, ids):
    model = tiny("llama")
    found = between(model, ids, 0, 2, torch.tensor([-1, 4, 22]), 3, 5)
    assert found.shape == (3, 23) and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_progress_counts_the_layers_that_are_passed(tiny, ids):
    seen = []
    between(tiny("llama"), ids, 1, 2, [3], 3, 5, progress=lambda *told: seen.append(told))
    assert [one for one in seen if one[0] == "backward"] == [("backward", done, 2) for done in range(3)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((1, 1, [0]), ValueError, "source_layer must be below target_layer, both from 0 to 3, not 1 and 1"),
        ((2, 1, [0]), ValueError, "source_layer must be below"),
        ((0, 4, [0]), ValueError, "source_layer must be below"),
        ((-1, 2, [0]), ValueError, "source_layer must be below"),
        ((0.5, 2, [0]), TypeError, "source_layer and target_layer must hold whole numbers, not 0.5"),
        ((0, 2, [23]), ValueError, "row 23 is outside the context's 23 tokens"),
        ((0, 2, []), ValueError, "rows is empty"),
        ((0, 2, 5), TypeError, "rows must be a sequence"),
        ((0, 2, [True]), TypeError, "rows must hold whole numbers"),
        ((0, 2, torch.arange(23) > 20), TypeError, "rows must hold whole numbers"),
        ((0, 2, [0], [3, 4]), TypeError, "between explains one decision"),
    ],
)
def test_what_cannot_be_meant(given, error, message, tiny, ids):
    with pytest.raises(error, match=message):
        between(tiny("llama"), ids, *given)


def test_more_rows_than_the_budget_holds(tiny, ids):
    model = tiny("llama")
    tight = Memory(host_budget=lrp_fast.plan(model, 23).least["cpu"])
    with pytest.raises(ValueError, match="cannot hold one layer of 23 tokens"):
        between(model, ids, 0, 2, range(23), 3, 5, memory=tight)
