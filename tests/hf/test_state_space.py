"""Layers that carry a state: what their config, their caches and others' blocks change, and what they do not."""

import pytest
import torch

from lrp_fast import Rules, attribute, patched
from tests import decoders

IDS = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
def test_blocks_of_lightning_attention_change_nothing(rule):
    whole, parts = (attribute(decoders.build("minimax", block_size=size), IDS, 3, 5, rule=rule) for size in (256, 4))
    # The tables of both are in float32.
    assert (whole.layers - parts.layers).abs().max() <= 1e-5 * whole.layers.abs().max()


@pytest.mark.parametrize("model_type", ["kimi_linear", "minimax", "qwen3_next", "recurrent_gemma"])
def test_a_cache_that_a_state_is_to_be_kept_in_is_refused(model_type):
    model = decoders.build(model_type, torch.float32)
    with patched(model), pytest.raises(ValueError, match="to keep its state in a cache: call with use_cache=False"):
        model(IDS, use_cache=True)


def test_no_epsilon_rule_for_linear_attention():
    with pytest.raises(ValueError, match="is linear attention, for which lrp_fast has no epsilon and gamma rule"):
        attribute(decoders.build("minimax"), IDS, 3, 5, rule=Rules("attnlrp", epsilon=0.1))
