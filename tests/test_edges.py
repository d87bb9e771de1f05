"""Edges between hidden states: the closed form against one backward pass a target, and the identities of the graph."""

import copy

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, Memory, Rules, attribute, patched
from lrp_fast.hf import contributions, decoder_layers

RULES = [
    Rules("attnlrp"), Rules("cp"), Rules("gradient"),
    Rules("attnlrp", epsilon=0.01), Rules("attnlrp", gamma=0.2), Rules("cp", epsilon=0.01, gamma=0.1),
    Rules("attnlrp", attention_epsilon=0.01, attention_gamma=0.3), Rules("cp", attention_epsilon=0.01),
    Rules("attnlrp", 0.01, 0.1, 0.01, 0.1), Rules("gradient", 0.01, 0.1, 0.01, 0.1),
]  # fmt: skip
FEW_RULES = [Rules("attnlrp"), Rules("cp", 0.01, 0.1, 0.01, 0.1)]
# Cohere rotates keys in float32 whatever the model's dtype.
TOLERANCE = {"cohere": 1e-7}
# Those of tests/conftest.py without biases in their attention.
HOMOGENEOUS = (
    "mistral", "qwen3", "smollm3", "phi3", "olmo3", "granite", "gemma", "gemma2", "gemma3", "cohere",
    "mixtral", "qwen3_moe",
)  # fmt: skip
ALL = GraphSpec(topk=10**6)


def batch_packed(model, ids, target, contrast, rule, layers):
    """(N, N) a layer: for each target row a backward pass from its part of the layer's output alone."""
    calls, outputs, matrices = {}, {}, {}
    modules = decoder_layers(model)

    def enter(module, args, named):
        calls[module] = (args[0].detach(), args[1:], named)

    def leave(module, args, output):
        outputs[module] = output[0] if isinstance(output, tuple) else output
        outputs[module].retain_grad()

    with patched(model, rule):
        handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
        handles += [module.register_forward_hook(leave) for module in modules]
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False).logits[0, -1]
        (logits[target] - logits[contrast]).backward()
        for handle in handles:
            handle.remove()
        for layer in layers:
            h, rest, named = calls[modules[layer]]
            leaf, g = h.clone().requires_grad_(), outputs[modules[layer]].grad
            output = modules[layer](leaf, *rest, **named)
            output = output[0] if isinstance(output, tuple) else output
            rows = []
            for j in range(ids.shape[1]):
                only = torch.zeros_like(g)
                only[:, j] = g[:, j]
                rows.append((torch.autograd.grad(output, leaf, only, retain_graph=True)[0] * h).sum(-1)[0])
            matrices[layer] = torch.stack(rows)
    return matrices


@pytest.mark.shows("graph")
def test_the_closed_form_is_one_backward_pass_a_target(family, rule, tiny, ids):
    model = tiny(family, torch.float64)
    truth = batch_packed(model, ids, 3, 5, rule, range(3) if rule in RULES else [1])
    tight = Memory(host_budget=lrp_fast.plan(model, 23, rule=rule, graph=ALL).least["cpu"])
    for memory in (None, tight):
        graph = attribute(model, ids, 3, 5, rule=rule, graph=ALL, memory=memory).graph
        for layer, matrix in truth.items():
            gap = (graph.dense(layer) - matrix).abs().max() / matrix.abs().max()
            assert gap <= TOLERANCE.get(family, 1e-12), (layer, memory)


@pytest.mark.shows("graph")
def test_edges_out_of_a_node_add_up_to_its_relevance(family, rule, tiny, ids):
    graph = attribute(tiny(family, torch.float64), ids, 3, 5, rule=rule, graph=ALL).graph
    for layer in range(3):
        matrix, nodes = graph.dense(layer), graph.nodes[layer]
        assert (matrix.sum(0) - nodes).abs().max() <= 1e-12 * nodes.abs().max()
        assert not matrix.triu(1).any()  # none from the future


@pytest.mark.parametrize("family", ["llama", *HOMOGENEOUS])
def test_cp_without_biases_conserves_relevance(family, tiny, ids):
    model = tiny(family, torch.float64, **({"attention_bias": False, "mlp_bias": False} if family == "llama" else {}))
    result = attribute(model, ids, 3, 5, rule="cp", graph=ALL)
    for layer in range(3):
        above, matrix = result.graph.nodes[layer + 1], result.graph.dense(layer)
        assert abs(above.sum() - result.value) <= 1e-10 * abs(result.value)
        assert (matrix.sum(1) - above).abs().max() <= 1e-10 * above.abs().max()


def test_float16_gives_the_edges_of_float64(tiny, ids):
    """The passes of a float16 model run at another scale (see `stream`); within what 16 bits do to node relevance."""
    model = tiny("llama", torch.float16)
    truth = attribute(copy.deepcopy(model).double(), ids, 3, 5, graph=ALL)
    found = attribute(model, ids, 3, 5, graph=ALL)
    own = (found.layers - truth.layers).abs().max()
    for layer in range(3):
        assert (found.graph.dense(layer) - truth.graph.dense(layer)).abs().max() <= 3 * own
        assert (found.graph.self_edges[layer] - truth.graph.self_edges[layer]).abs().max() <= 3 * own


@pytest.mark.shows("graph")
def test_every_family_has_edges_in_16_bits(family, tiny, ids):
    """Also where what the input contributes to keys and values takes a pass of its own (see `contributions`)."""
    model = tiny(family, torch.bfloat16)
    for rule in (Rules("gradient"), Rules("attnlrp", 0.01, 0.1)):
        truth = attribute(copy.deepcopy(model).double(), ids, 3, 5, rule=rule, graph=ALL)
        found = attribute(model, ids, 3, 5, rule=rule, graph=ALL)
        own = (found.layers - truth.layers).abs().max()
        for layer in range(3):
            assert (found.graph.dense(layer) - truth.graph.dense(layer)).abs().max() <= 3 * own


@pytest.mark.shows("graph")
def test_the_attribution_is_the_same_with_a_graph(family, tiny, ids):
    model = tiny(family)
    plain, twice = attribute(model, ids, 3, 5), [attribute(model, ids, 3, 5, graph=ALL) for _ in range(2)]
    for result in twice:
        assert result.value == plain.value and torch.equal(result.layers, plain.layers)
        assert torch.equal(result.graph.nodes, plain.layers)
    for name in ("self_edges", "rows", "indptr", "columns", "weights", "dropped_mass"):
        assert torch.equal(*(getattr(result.graph, name) for result in twice))


@pytest.mark.parametrize("share", [0.3, 0.85, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_cumulative_mass_is_that_of_pruning(share, dtype, tiny, ids):
    model = tiny("qwen2", dtype)
    found = attribute(model, ids, 3, 5, graph=GraphSpec(mass=share)).graph
    pruned = attribute(model, ids, 3, 5, graph=ALL).graph.prune(mass=share)
    for layer in range(3):
        a, b = found.edges(layer), pruned.edges(layer)
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        assert (a.weights - b.weights).abs().max() <= 1e-12 * a.weights.abs().max()


def test_top_k_keeps_the_largest_of_each_row(tiny, ids):
    model = tiny("mistral", torch.float64)
    whole = attribute(model, ids, 3, 5, graph=ALL).graph
    graph = attribute(model, ids, 3, 5, graph=GraphSpec(topk=3)).graph
    assert torch.equal(graph.self_edges, whole.self_edges) and graph.rows.tolist() == whole.rows.tolist()
    for layer in range(3):
        found, dense = graph.edges(layer), whole.dense(layer) - torch.diag(whole.self_edges[layer])
        for r, row in enumerate(found.rows.tolist()):
            columns = found.columns[found.indptr[r] : found.indptr[r + 1]].tolist()
            best = sorted(range(row + 1), key=lambda i: (-abs(dense[row, i].item()), i))[:3]  # noqa: B023
            assert columns == sorted(i for i in best if dense[row, i])
            rest = dense[row].clone()
            rest[columns] = 0
            lost = torch.stack([rest.clamp(min=0).sum(), rest.clamp(max=0).sum()])
            assert (graph.dropped(layer)[r] - lost).abs().max() <= 1e-12 * dense.abs().max()


def test_thresholds_and_layers_choose_the_targets(tiny, ids):
    model = tiny("qwen3", torch.float64)
    result = attribute(model, ids, 3, 5, graph=ALL)
    share = (result.layers[1:3].abs().median() / abs(result.value)).item()
    for threshold, absolute in ((share, False), (share * abs(result.value), True)):
        spec = GraphSpec(topk=30, node_threshold=threshold, absolute=absolute, layers=[0, 1])
        graph = attribute(model, ids, 3, 5, graph=spec).graph
        for layer in (0, 1):
            above = result.layers[layer + 1].abs() >= share * abs(result.value)
            assert graph.edges(layer).rows.tolist() == above.nonzero().flatten().tolist() != []
            matrix = result.graph.dense(layer)[above]
            assert (graph.dense(layer)[above] - matrix).abs().max() <= 1e-12 * matrix.abs().max()
        assert len(graph.edges(2).rows) == 0
        assert torch.equal(graph.self_edges, result.graph.self_edges)


@pytest.mark.parametrize("small", [False, True])
def test_several_targets_have_a_graph_each(small, tiny, ids):
    model = tiny("llama", torch.float64)
    spec = GraphSpec(topk=4)
    memory = Memory(host_budget=lrp_fast.plan(model, 23, targets=2, graph=spec).least["cpu"]) if small else None
    together = attribute(model, ids, [3, 4], [5, None], graph=spec, memory=memory)
    for result, (target, contrast) in zip(together, [(3, 5), (4, None)], strict=True):
        single = attribute(model, ids, target, contrast, graph=GraphSpec(topk=4)).graph
        for layer in range(3):
            matrix = single.dense(layer)
            assert (result.graph.dense(layer) - matrix).abs().max() <= 1e-12 * matrix.abs().max()


def test_the_graph_says_what_it_is_of_and_is_kept(tiny, ids, tmp_path):
    graph = attribute(tiny("llama"), ids, 3, 5, graph=GraphSpec(mass=0.9)).graph
    assert graph.manifest["spec"]["mass"] == 0.9 and graph.manifest["rules"]["name"] == "attnlrp"
    graph.save(tmp_path / "graph.safetensors")
    again = lrp_fast.Graph.load(tmp_path / "graph.safetensors")
    assert torch.equal(again.weights, graph.weights) and again.manifest["value"] == graph.manifest["value"]


def test_contributions_are_the_transpose_of_the_backward_pass(family, rule, tiny, ids):
    """<k~_i, c> + <v~_i, d> over all positions is <h, J^T (c, d)>, whatever c and d."""
    model = tiny(family, torch.float64)
    calls, reached = [], []
    layer = decoder_layers(model)[1]
    handle = layer.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    with patched(model, rule):
        model(ids, use_cache=False)
        handle.remove()
        (h, *rest), named = calls[0]
        leaf = h.detach().clone().requires_grad_()

        def attend(query, key, value, **given):
            reached.extend([key, value])
            return torch.zeros_like(query)

        (attention,) = (module for module in layer.modules() if hasattr(module, "lrp_fast_rules"))
        attention.lrp_fast_attend = attend
        layer(leaf, *rest, **named)
        del attention.lrp_fast_attend
        cotangents = [torch.randn_like(one) for one in reached]
        terms = torch.autograd.grad(reached, leaf, cotangents)[0] * leaf.detach()
        (parts,) = contributions(layer, rule, h.detach(), rest, named, 1)
    assert (parts[0] is None) == (family in HOMOGENEOUS and rule.name != "gradient" and not rule.epsilon + rule.gamma)
    parts = [one.detach() if part is None else part for one, part in zip(reached, parts, strict=True)]
    found = sum((part * g).sum((1, 3)) for part, g in zip(parts, cotangents, strict=True))
    gap = (found - terms.sum(-1)).abs().max() / terms.abs().sum(-1).max()  # plain gradients cancel here
    assert gap <= TOLERANCE.get(family, 1e-12)


@pytest.mark.slow
def test_smollm2_in_float32(smollm2):
    model, _ = smollm2
    ids = torch.randint(100, 40000, (1, 256), generator=torch.Generator().manual_seed(0))
    graph = attribute(model, ids, 1000, 2000, graph=ALL).graph
    for layer, matrix in batch_packed(model, ids, 1000, 2000, Rules(), [3, 20]).items():
        assert (graph.dense(layer) - matrix).abs().max() <= 1e-4 * matrix.abs().max()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "one of topk= and mass="),
        ({"topk": 3, "mass": 0.5}, ValueError, "one of topk= and mass="),
        ({"topk": 0}, ValueError, "topk must be at least 1"),
        ({"topk": 1.5}, TypeError, "topk must be a whole number"),
        ({"mass": 0}, ValueError, "mass must be a share"),
        ({"mass": 1.1}, ValueError, "mass must be a share"),
        ({"topk": 1, "node_threshold": -1}, ValueError, "node_threshold"),
        ({"topk": 1, "absolute": 1}, TypeError, "absolute"),
        ({"topk": 1, "layers": 3}, TypeError, "layers must be a list"),
        ({"topk": 1, "layers": torch.tensor([True, False])}, TypeError, "layers must be a list"),
    ],
)
def test_a_spec_that_asks_for_nothing_sensible(given, error, message):
    with pytest.raises(error, match=message):
        GraphSpec(**given)


def test_a_layer_that_is_not_there(tiny, ids):
    with pytest.raises(ValueError, match="no transition 3"):
        attribute(tiny("llama"), ids, graph=GraphSpec(topk=1, layers=[3]))
    with pytest.raises(TypeError, match="must be a lrp_fast.GraphSpec"):
        attribute(tiny("llama"), ids, graph=16)
