"""Doge's attention, whose scores have a number of each key's own added to them; its rule: test_decoders.py."""

import pytest
import torch

import lrp_fast
from lrp_fast import attribute
from tests import decoders

pytestmark = decoders.RECENT
IDS = torch.randint(3, 97, (1, 17), generator=torch.Generator().manual_seed(2))


def test_a_prompt_of_more_tokens_than_are_chosen_is_refused():
    model = decoders.build("doge")
    attribute(model, IDS[:, :12], 3, 5)
    with pytest.raises(ValueError, match="explain at most 12, not 13"):
        attribute(model, IDS[:, :13], 3, 5)


@pytest.mark.parametrize("start", [0, 4])
def test_logits_are_those_of_the_model_padded_or_not(start):
    model, mask = decoders.build("doge", torch.float32), torch.ones(2, 11, dtype=torch.int64)
    mask[1, :start] = 0
    given = {"input_ids": IDS[:, :11].expand(2, -1), "attention_mask": mask}
    with torch.no_grad():
        own = model(**given).logits
        with lrp_fast.patched(model):
            found = model(**given).logits
    assert (found - own)[mask.bool()].abs().max() <= 1e-5 * own.abs().max()


@pytest.mark.parametrize(
    ("settings", "words"), [({"sliding_window": 7}, "has a sliding window"), ({"is_moe": True}, "DogeCDMoE")]
)
def test_what_else_it_may_do_is_refused(settings, words):
    with pytest.raises(lrp_fast.UnsupportedModuleError, match=words):
        attribute(decoders.build("doge", num_experts=16, **settings), IDS[:, :9], 3, 5)
