"""Layers that read by chunks (Llama 4's): the mask tells, and no layer takes one for causal."""

import inspect

import pytest
import torch
import transformers

from lrp_fast import GraphSpec, attribute, attribute_batch, patched
from lrp_fast.hf.attention import mask_bounds
from tests import decoders

IDS = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))
MAKERS = {
    "chunks": transformers.masking_utils.create_chunked_causal_mask,
    "windows": transformers.masking_utils.create_sliding_window_causal_mask,
}


@pytest.fixture
def model():
    return decoders.build("llama4_text", attention_chunk_size=4)


def masks_of(model, kind, length, mask=None):
    """What transformers asks of us for a prompt, as its models ask it."""
    asked = []
    transformers.AttentionMaskInterface.register("lrp_fast_test", lambda **named: asked.append(named))
    model.config._attn_implementation, model.config.sliding_window = "lrp_fast_test", 4
    x, places = torch.zeros(2, length, 64), torch.arange(length)
    known = inspect.signature(MAKERS[kind]).parameters
    given = {"config": model.config, "attention_mask": mask, "position_ids": places[None]}
    given |= {name: x for name in ("inputs_embeds", "input_embeds") if name in known}
    given |= {name: None for name in ("past_key_values", "cache") if name in known}
    MAKERS[kind](**given, **{name: places for name in ("cache_position",) if name in known})
    return asked[0]


def test_a_mask_of_chunks_is_told_from_one_of_windows(model):
    padding = torch.ones(2, 9, dtype=torch.int64)
    padding[1, :3] = 0
    for mask, bounds in ((None, [[0, 9], [0, 9]]), (padding, [[0, 9], [3, 9]])):
        found = mask_bounds(**masks_of(model, "chunks", 9, mask))
        assert found.tolist() == [[*row, 4] for row in bounds]
        found = mask_bounds(**masks_of(model, "windows", 9, mask))
        assert found is None if mask is None else found.tolist() == bounds
    assert mask_bounds(**masks_of(model, "chunks", 4)) is None
    assert mask_bounds(**masks_of(model, "chunks", 4, padding[:, :4])).tolist() == [[0, 4], [3, 4]]


def test_chunks_matter_and_those_of_a_padded_row_begin_with_it():
    """Without temperatures, which Llama 4 counts from the padding on."""
    cold = {"attn_temperature_tuning": False}
    model, whole = (decoders.build("llama4_text", attention_chunk_size=size, **cold) for size in (4, 16))
    truth = attribute(model, IDS, 3, 5).relevance
    assert (attribute(whole, IDS, 3, 5).relevance - truth).abs().max() > 1e-2 * truth.abs().max()
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), IDS], 1)
    mask = (torch.arange(14) >= 3).long()[None]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    x = model.get_input_embeddings()(padded).detach().requires_grad_()
    with patched(model):
        logits = model(inputs_embeds=x, attention_mask=mask, position_ids=places, use_cache=False).logits[0, -1]
        (logits[3] - logits[5]).backward()
    found = (x * x.grad).sum(-1)[0]
    assert not found[:3].any()
    assert (found[3:] - truth).abs().max() <= 1e-5 * truth.abs().max()


# Of 0.8 of the mass, rounding decides which of two equal edges is the last.
@pytest.mark.parametrize("graph", [None, GraphSpec(topk=100), GraphSpec(mass=0.9)], ids=["nodes", "topk", "mass"])
def test_prompts_of_a_batch_are_explained_as_alone(model, graph):
    prompts = [IDS[0].tolist(), IDS[0, :5].tolist(), IDS[0, 2:10].tolist()]
    together = attribute_batch(model, prompts, target=3, contrast=5, graph=graph)
    for prompt, found in zip(prompts, together, strict=True):
        alone = attribute(model, prompt, 3, 5, graph=graph)
        assert (found.layers - alone.layers).abs().max() <= 1e-11 * alone.layers.abs().max()
        for layer in range(3 if graph else 0):
            one, other = found.graph.dense(layer), alone.graph.dense(layer)
            assert (one - other).abs().max() <= 1e-11 * other.abs().max()


def test_no_edge_crosses_a_chunk(model):
    graph = attribute(model, IDS, 3, 5, graph=GraphSpec(topk=100)).graph
    place = torch.arange(11)
    apart = place[:, None] // 4 != place // 4
    crossing = [bool(graph.dense(layer)[apart].any()) for layer in range(3)]
    assert crossing == [kind == "full_attention" for kind in model.config.layer_types]


def test_a_cache_beyond_a_chunk_is_refused(model):
    with patched(model), torch.no_grad():
        cache = model(IDS[:, :3], use_cache=True).past_key_values
        model(IDS[:, 3:4], past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="reads by chunks of 4 tokens, and a cache goes beyond one: use none"):
            model(IDS[:, 4:5], past_key_values=cache, use_cache=True)


def test_with_a_graph_no_tolerance_bounds_a_pass_over_chunks():
    ids = torch.randint(3, 97, (1, 250), generator=torch.Generator().manual_seed(4))
    model = decoders.build("llama4_text", attention_chunk_size=100, max_position_embeddings=256)
    exact, bounded = (attribute(model, ids, 3, graph=GraphSpec(topk=3), tolerance=one) for one in (0.0, 0.2))
    assert torch.equal(exact.layers, bounded.layers) and not bounded.dropped.any()
