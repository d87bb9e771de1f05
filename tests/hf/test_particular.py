"""What is particular about families whose rules test_decoders.py shows."""

import pytest
import torch
from transformers.models.falcon import modeling_falcon

import lrp_fast
from lrp_fast import attribute
from lrp_fast.hf import masking
from tests import decoders

pytestmark = decoders.RECENT
IDS = torch.randint(3, 97, (1, 17), generator=torch.Generator().manual_seed(2))


def logits(model, **given):
    with torch.no_grad():
        own = model(IDS, use_cache=False, **given).logits
        with lrp_fast.patched(model):
            return own, model(IDS, use_cache=False, **given).logits


@pytest.mark.parametrize("model_type", ["phimoe", "beam", "xmod", "jetmoe"])
def test_in_float32_logits_keep_their_bits_where_no_window_hides_a_key(model_type):
    window = {"sliding_window": 99} if model_type in ("phimoe", "beam") else {}
    own, found = logits(decoders.build(model_type, torch.float32, **window))
    assert own.dtype == found.dtype
    if model_type == "xmod":
        assert torch.equal(own, found)
    assert (own - found).abs().max() <= 1e-6 * own.abs().max()


def test_a_window_that_the_mask_alone_knows_is_the_attentions():
    near, far = (logits(decoders.build("phimoe", torch.float32, sliding_window=window)) for window in (5, 99))
    assert (near[0] - far[0]).abs().max() > 0.1
    assert (near[0] - near[1]).abs().max() <= 1e-5 * near[0].abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_in_float32_makes_logits_of_float32(dtype):
    own, found = logits(decoders.build("beam", dtype))
    assert own.dtype == found.dtype == torch.float32
    assert found.abs().max() <= 3


def test_a_router_that_draws_experts_at_random_is_refused():
    model = decoders.build("phimoe").train()
    with lrp_fast.patched(model), pytest.raises(ValueError, match=r"draws experts at random: call model.eval"):
        model(IDS)


def test_a_language_is_its_adapters():
    model = decoders.build("xmod")
    of_default = attribute(model, IDS, 3, 5).layers
    model.set_default_language("en_XX")
    assert (attribute(model, IDS, 3, 5).layers - of_default).abs().max() > 1e-3


def test_a_causal_mask_that_is_asked_for_as_a_custom_one(tiny, monkeypatch):
    """As Falcon's model of transformers 5.2 to 5.14 does."""
    found, own = attribute(tiny("falcon", torch.float64), IDS, 3, 5), modeling_falcon.create_causal_mask

    def custom(**named):
        return own(**named | {"and_mask_function": lambda *_: torch.tensor(True)})

    monkeypatch.setattr(modeling_falcon, "create_causal_mask", custom)
    with pytest.raises(ValueError, match="neither causal nor a sliding window"):
        attribute(tiny("falcon", torch.float64), IDS, 3, 5)
    monkeypatch.setattr(masking, "masking_model", masking.text_model)
    assert torch.equal(attribute(tiny("falcon", torch.float64), IDS, 3, 5).layers, found.layers)
