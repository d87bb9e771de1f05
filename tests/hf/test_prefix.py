"""Shared prefixes: which models have nothing else to carry, and prompts behind one prefix against whole ones."""

import pytest
import torch

from lrp_fast.hf import carries_keys, decoder_layers, logits_behind, prefix_of
from tests import decoders

SHARED = ["arcee", "cohere", "gemma2", "glm4_moe", "gpt_neox"]
# Layers with a state, an attention beside a state, chosen keys, no attention at all.
NOT_SHARED = ["bailing_hybrid", "falcon_h1", "glm_moe_dsa", "mamba"]


@pytest.mark.parametrize("model_type", SHARED)
def test_prompts_behind_a_prefix_say_what_whole_ones_say(model_type):
    model = decoders.build(model_type, torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 97, (11,), generator=generator)
    assert carries_keys(model)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
        prefix = prefix_of(model, embedded)
        assert len(prefix) == len(decoder_layers(model))
        # Of different lengths, in one batch; the shortest has one token of its own.
        own = [torch.randn(count, embedded.shape[1], generator=generator) for count in (5, 1, 3)]
        rows = [torch.cat([embedded[:6], one]) for one in own]
        together = logits_behind(model, rows, 6, prefix)
        for row, found in zip(rows, together, strict=True):
            expected = model(inputs_embeds=row[None], use_cache=False).logits[0, -1]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        plain = logits_behind(model, rows)
        torch.testing.assert_close(plain, together, rtol=0, atol=1e-5 * float(together.abs().max()))
    assert all(keys.shape[2] == 11 for keys, _ in prefix)  # the batch has not grown it


@decoders.RECENT  # some of them are not in older releases
@pytest.mark.parametrize("model_type", NOT_SHARED)
def test_what_carries_more_than_keys_shares_nothing(model_type):
    assert not carries_keys(decoders.build(model_type, torch.float32).eval())


def test_embeddings_that_a_model_scales_in_place_are_left_as_they_were():
    model = decoders.build("ctrl", torch.float32).eval()
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.arange(4, 9))
        before = embedded.clone()
        prefix_of(model, embedded)
        logits_behind(model, [embedded])
    assert torch.equal(embedded, before)
