"""Side routes (Gemma 3n's and Gemma 4's per-layer embeddings, keys and values of earlier layers): `lrp_fast.sides`."""

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


BOTH = pytest.mark.parametrize("of", ["gemma4_text", "gemma3n_text"])


def build(dtype=torch.float64, of="gemma4_text", **more):
    given = {"gemma4_text": decoders.GEMMA4_SMALL, "gemma3n_text": decoders.GEMMA3N}[of]
    return decoders.build(of, dtype, **given | more)


def tight(model, **given):
    return Memory(host_budget=lrp_fast.plan(model, 11, **given).least["cpu"])


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


def test_what_is_added_as_it_is_passes_on_all():
    """Of (1 + c) x, with c = 0: a linear map, whatever the rule."""
    model = build(of="gemma3n_text")
    altup = model.model.layers[0].altup
    altup.correction_coefs.weight.data.zero_()
    predicted, active = torch.randn(2, altup.config.altup_num_inputs, 1, 5, altup.config.hidden_size).double()
    active = active[0].requires_grad_()
    with patched(model):
        corrected = altup.correct(predicted, active)[altup.config.altup_active_idx]
    assert torch.equal(torch.autograd.grad(corrected.sum(), active)[0], torch.ones_like(active))



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


@BOTH
def test_all_of_the_first_nodes_is_explained_by_cp(of):
    model = build(of=of)
    found = attribute(model, IDS, 3, 5, rule="cp")
    sums = found.layers.sum(1)
    assert abs(sums[0] - found.value) <= 1e-12 * abs(found.value)
    assert abs(sums[-1] - found.value) <= 1e-12 * abs(found.value)
    assert (sums[1:-1] - found.value).abs().min() > 1e-3  # what passes by


@BOTH
def test_several_targets_and_prompts_are_explained_as_alone(of):
    model = build(of=of)
    alone = [attribute(model, IDS, target, 5).layers for target in (3, 7)]
    for memory in (None, tight(model, targets=2)):
        found = attribute(model, IDS, [3, 7], 5, memory=memory)
        assert all(gap(one.layers, other) <= 1e-11 for one, other in zip(found, alone, strict=True))
    prompts = [IDS[0].tolist(), IDS[0, :5].tolist()]
    for prompt, found in zip(prompts, attribute_batch(model, prompts, target=3, contrast=5), strict=True):
        assert gap(found.layers, attribute(model, prompt, 3, 5).layers) <= 1e-11


@BOTH
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_narrower_numbers(dtype, most, of):
    model = build(dtype, of)
    for memory in (None, tight(model, rule="cp")):
        found = attribute(model, IDS, 3, 5, rule="cp", memory=memory)
        assert abs(found.layers[0].sum() - found.value) <= most * found.layers[0].abs().sum()


@BOTH
def test_what_nodes_pass_to_the_last_ones_is_all_that_they_have(of):
    model = build(of=of)
    truth = attribute(model, IDS, 3, 5).layers
    for source in (0, 2):
        rows = between(model, IDS, source, 5, range(11), target=3, contrast=5)
        assert gap(rows.sum(0), truth[source]) <= 1e-11


@BOTH
def test_hooks_of_others_see_the_same_pass(of):
    model, seen = build(of=of), []
    truth = attribute(model, IDS, 3, 5).layers
    model.model.layers[4].register_forward_hook(lambda *given: seen.append(given[-1]))
    model.model.layers[1].register_forward_hook(lambda *given: seen.append(given[-1]))
    for memory in (None, tight(model)):
        assert gap(attribute(model, IDS, 3, 5, memory=memory).layers, truth) <= 1e-11
    assert seen


@BOTH
def test_no_token_is_left_out_where_logits_are(of):
    """transformers leaves out those without, above the layers that make keys."""
    model = build(torch.float32, of)
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


def test_a_graph_is_refused_of_streams_too():
    with pytest.raises(ValueError, match="layer 0: it reads more than the layer below puts out: leave the graph"):
        attribute(build(of="gemma3n_text"), IDS, 3, 5, graph=GraphSpec(topk=3))


def test_a_cut_off_conserves_relevance():
    """Its gradient is that of a function of degree 1 of the row."""
    mlp = build(of="gemma3n_text").model.layers[0].mlp
    z = torch.randn(5, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = mlp._gaussian_topk(z)
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (found,) = torch.autograd.grad(y, z, g)
    assert (y > 0).any() and (y == 0).any()
    assert ((z * found).sum(-1) - (y * g).sum(-1)).abs().max() <= 1e-12 * (y * g).abs().sum(-1).max()
