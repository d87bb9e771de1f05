"""Side routes (Gemma 4's per-layer embeddings, keys and values of earlier layers): `lrp_fast.sides`."""

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute, attribute_batch, between, patched
from lrp_fast.hf import decoder_layers
from tests import decoders
from tests.oracles.functional import explained

pytestmark = decoders.RECENT
IDS = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))
KINDS = {
    "both": {},
    "embeddings": {"num_kv_shared_layers": 0},
    "with experts": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40},
    "keys that are values": {"attention_k_eq_v": True},
}


def build(dtype=torch.float64, **more):
    return decoders.build("gemma4_text", dtype, **decoders.GEMMA4_SMALL | more)


def tight(model, **given):
    return Memory(host_budget=lrp_fast.plan(model, 11, **given).least["cpu"])


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


@decoders.TABLE
@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_are_those_of_detached_rules(kind, rule):
    model, plain = build(**KINDS[kind]), build(**KINDS[kind])
    value, nodes, _ = explained(plain, decoder_layers(plain), IDS, 3, 5, rule, False)
    for memory in (None, tight(model, rule=rule)):
        found = attribute(model, IDS, 3, 5, rule=rule, memory=memory)
        assert abs(found.value - value) <= 1e-12
        assert gap(found.layers, nodes) <= 1e-11


def test_all_of_the_first_nodes_is_explained_by_cp():
    model = build(final_logit_softcapping=None)
    found = attribute(model, IDS, 3, 5, rule="cp")
    sums = found.layers.sum(1)
    assert abs(sums[0] - found.value) <= 1e-12 * abs(found.value)
    assert abs(sums[-1] - found.value) <= 1e-12 * abs(found.value)
    assert (sums[1:-1] - found.value).abs().min() > 1e-3  # what passes by


def test_several_targets_and_prompts_are_explained_as_alone():
    model = build()
    alone = [attribute(model, IDS, target, 5).layers for target in (3, 7)]
    for memory in (None, tight(model, targets=2)):
        found = attribute(model, IDS, [3, 7], 5, memory=memory)
        assert all(gap(one.layers, other) <= 1e-11 for one, other in zip(found, alone, strict=True))
    prompts = [IDS[0].tolist(), IDS[0, :5].tolist()]
    for prompt, found in zip(prompts, attribute_batch(model, prompts, target=3, contrast=5), strict=True):
        assert gap(found.layers, attribute(model, prompt, 3, 5).layers) <= 1e-11


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_narrower_numbers(dtype, most):
    model = build(dtype, final_logit_softcapping=None)
    for memory in (None, tight(model, rule="cp")):
        found = attribute(model, IDS, 3, 5, rule="cp", memory=memory)
        assert abs(found.layers[0].sum() - found.value) <= most * found.layers[0].abs().sum()


def test_what_nodes_pass_to_the_last_ones_is_all_that_they_have():
    model = build()
    truth = attribute(model, IDS, 3, 5).layers
    for source in (0, 2):
        rows = between(model, IDS, source, 5, range(11), target=3, contrast=5)
        assert gap(rows.sum(0), truth[source]) <= 1e-11


def test_hooks_of_others_see_the_same_pass():
    model, seen = build(), []
    truth = attribute(model, IDS, 3, 5).layers
    model.model.layers[4].register_forward_hook(lambda *given: seen.append(given[-1]))
    model.model.layers[1].register_forward_hook(lambda *given: seen.append(given[-1]))
    for memory in (None, tight(model)):
        assert gap(attribute(model, IDS, 3, 5, memory=memory).layers, truth) <= 1e-11
    assert seen


def test_no_token_is_left_out_where_logits_are():
    """transformers leaves out those without, above the layers that make keys."""
    model = build(torch.float32)
    padded, mask = torch.cat([IDS, IDS.flip(1)]), torch.ones(2, 11, dtype=torch.int64)
    mask[1, :3] = 0
    own = model(padded, attention_mask=mask, use_cache=False).logits[:, -2:]
    with patched(model):
        found = model(padded, attention_mask=mask, use_cache=False, logits_to_keep=2).logits
    assert gap(found, own) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_is_refused(kind):
    with pytest.raises(ValueError, match="layer [03]: it reads more than the layer below puts out: leave the graph"):
        attribute(build(**KINDS[kind]), IDS, 3, 5, graph=GraphSpec(topk=3))
