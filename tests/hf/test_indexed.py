"""Attentions of chosen keys: covered where all are chosen, refused beyond."""

import pytest
import torch
import transformers
from packaging.version import Version

import lrp_fast
from lrp_fast import attribute
from tests import decoders

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__).release[:2] < (5, 23), reason="not in older releases of transformers"
)
INDEXED = ["axk2", "deepseek_v32", "dots3_note", "glm_moe_dsa", "minimax_m3_vl_text"]
IDS = torch.randint(3, 97, (1, 17), generator=torch.Generator().manual_seed(2))


def most(model_type: str) -> int:
    return 12 if model_type in ("doge", "minimax_m3_vl_text") else 16


@pytest.mark.parametrize("model_type", [*INDEXED, "doge"])
def test_a_prompt_of_more_tokens_than_are_chosen_is_refused(model_type):
    model = decoders.build(model_type)
    attribute(model, IDS[:, : most(model_type)], 3, 5)
    with pytest.raises(ValueError, match=f"explain at most {most(model_type)}, not {most(model_type) + 1}"):
        attribute(model, IDS[:, : most(model_type) + 1], 3, 5)


@pytest.mark.parametrize("model_type", INDEXED)
def test_a_cache_is_refused(model_type):
    model = decoders.build(model_type)
    with lrp_fast.patched(model), pytest.raises(ValueError, match="pass use_cache=False"):
        model(IDS[:, :9])


@pytest.mark.parametrize("model_type", [*INDEXED, "doge"])
def test_logits_are_those_of_the_model_padded_or_not(model_type):
    model, ids = decoders.build(model_type, torch.float32), IDS[:, :11].expand(2, -1)
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, :4] = 0
    for given in (None, mask):
        with torch.no_grad():
            own = model(ids, attention_mask=given, use_cache=False).logits
            with lrp_fast.patched(model):
                found = model(ids, attention_mask=given, use_cache=False).logits
        real = mask.bool() if given is not None else torch.ones_like(mask).bool()
        assert (found - own)[real].abs().max() <= 1e-5 * own.abs().max()


def test_positions_that_are_not_places_are_refused_where_blocks_are_chosen():
    model = decoders.build("minimax_m3_vl_text")
    with lrp_fast.patched(model), pytest.raises(ValueError, match="position_ids that are not the tokens' places"):
        model(IDS[:, :9], position_ids=torch.arange(9)[None] + 1, use_cache=False)


@pytest.mark.parametrize(
    ("settings", "words"), [({"sliding_window": 7}, "has a sliding window"), ({"is_moe": True}, "DogeCDMoE")]
)
def test_what_else_a_doge_may_do_is_refused(settings, words):
    with pytest.raises(lrp_fast.UnsupportedModuleError, match=words):
        attribute(decoders.build("doge", num_experts=16, **settings), IDS[:, :9], 3, 5)
