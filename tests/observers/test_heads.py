"""Relevance of attention heads: what they are sums of, and the identities of the rules."""

import pytest
import torch

from lrp_fast import GraphSpec, Rules, ablate, attribute, patched
from lrp_fast.observers import Heads
from tests import decoders

# Those of tests/conftest.py without biases in their attention, or in the norm before it.
HOMOGENEOUS = (
    "mistral", "qwen3", "smollm3", "phi3", "olmo3", "granite", "gemma", "gemma2", "gemma3", "cohere",
    "mixtral", "qwen3_moe",
)  # fmt: skip


def close(found, truth, tolerance=1e-10):
    assert found.shape == truth.shape
    return bool((found - truth).abs().max() <= tolerance * truth.abs().max())


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("family", HOMOGENEOUS)
def test_over_all_heads_it_is_what_crosses_positions(family, rule, placed, tiny, ids):
    """<g_v, v> + <g_k, k>, which with self edges adds up to the nodes."""
    result = attribute(
        tiny(family, torch.float64), ids, 3, 5, rule=rule, graph=GraphSpec(topk=1), observe=[Heads()]
    )  # fmt: skip
    (heads,) = result.observed
    crossing = (result.graph.nodes[:3] - result.graph.self_edges).sum(1)
    # Cohere rotates keys in float32.
    assert close(heads.key.sum(1) + heads.value.sum(1), crossing, 1e-6 if family == "cohere" else 1e-10)


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
def test_a_head_passes_on_what_the_rule_says(family, rule, placed, tiny, ids):
    """Of what arrives, values get half or all. Scores are a product of queries and keys: both pass on as much."""
    (heads,) = attribute(tiny(family, torch.float64), ids, 3, 5, rule=rule, observe=[Heads()]).observed
    assert heads.layer.tolist() == [0, 1, 2] and heads.output.shape == heads.query.shape == (3, 4)
    each = [one.unflatten(1, (heads.key.shape[1], -1)).sum(2) for one in (heads.output, heads.query)]
    assert close(heads.value, each[0] * (0.5 if rule == "attnlrp" else 1))
    if rule == "cp":
        assert not heads.query.any() and not heads.key.any()
    else:
        assert heads.query.any() and close(heads.key, each[1])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("rule", ["attnlrp", Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)], ids=["plain", "stabilised"])
def test_what_arrives_is_the_input_of_the_projection_behind(family, rule, placed, tiny, ids):
    """Each target's own, by a hook on that projection under `patched`, with layers named too."""
    model = tiny(family, torch.float64)
    results = attribute(model, ids, target=[3, 7], rule=rule, observe=[Heads(), Heads([1])])
    name = {"llama": "o_proj", "gpt_neox": "dense", "gpt2": "c_proj"}[family]
    behind = [one for path, one in model.named_modules() if path.split(".")[-2:] in (
        ["self_attn", name], ["attention", name], ["attn", name])]  # fmt: skip
    given = []
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):
        handles = [one.register_forward_pre_hook(lambda _, args: given.append(args[0])) for one in behind]
        logits = model(inputs_embeds=x, use_cache=False).logits[0, -1]
        for result, target in zip(results, (3, 7), strict=True):
            gs = torch.autograd.grad(logits[target], given, retain_graph=True)
            truth = [(g * x)[0].unflatten(-1, (4, -1)).sum((0, 2)) for g, x in zip(gs, given, strict=True)]
            every, second = result.observed
            assert close(every.output, torch.stack(truth), 1e-12)
            assert second.layer.tolist() == [1] and torch.equal(second.output, every.output[1:2])
        for handle in handles:
            handle.remove()


def test_float16_says_the_same(placed, tiny, ids):
    model = tiny("llama", torch.float16)
    (found,) = attribute(model, ids, 3, 5, observe=[Heads()]).observed
    (truth,) = attribute(model.double(), ids, 3, 5, observe=[Heads()]).observed
    assert found.output.dtype == torch.float32
    assert close(found.output, truth.output.float(), 0.02) and close(found.value, truth.value.float(), 0.02)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("mamba", "layer 0: it holds no softmax attention, and heads are those of one"),
        ("qwen3_next", "layer 0: it holds no softmax attention"),
        ("longcat_flash", "layer 0: it holds 2 softmax attentions"),
        ("bloom", r"layer 0: BloomAttention adds biases to its scores \(ALiBi\)"),
        ("gemma4_text", "layers 0 and 2 have different numbers of heads"),
    ],
)
@decoders.RECENT
def test_what_has_no_heads_of_one_kind_is_refused(model_type, words, ids):
    with pytest.raises(ValueError, match=words):
        attribute(decoders.build(model_type), ids, target=3, observe=[Heads()])


@decoders.RECENT
def test_of_layers_of_two_kinds_those_with_heads_are_served(ids):
    (found,) = attribute(decoders.build("qwen3_next"), ids, target=3, observe=[Heads([1])]).observed
    assert found.layer.tolist() == [1] and found.output.shape == (1, 4) and found.output.all()


def test_heads_that_a_router_chooses_are_refused():
    """Head 3 of one token is not head 3 of the next."""
    model = decoders.build("jetmoe", torch.float32)
    ids = torch.arange(1, 12)[None]
    with pytest.raises(ValueError, match="the router of JetMoeAttention gives each token heads of its own: name other"):
        attribute(model, ids, target=3, observe=[Heads()])
    with pytest.raises(ValueError, match="layer 0: the router of JetMoeAttention gives each token heads of its own"):
        ablate(model, ids, {"heads": [(0, 1)]}, target=3)


def test_heads_beside_a_scan_are_refused():
    """What crosses positions there is not theirs alone."""
    model, ids = decoders.build("falcon_h1", torch.float32), torch.arange(3, 12)[None]
    with pytest.raises(ValueError, match="layer 0: tokens meet in its FalconH1Mixer as well, and heads are those of"):
        attribute(model, ids, target=5, observe=[Heads()])
