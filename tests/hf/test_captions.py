"""GIT's decoder, given text alone; its rules: test_decoders.py."""

import pytest
import torch
import transformers
from packaging.version import Version

import lrp_fast
from tests import decoders

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__).release[:2] < (5, 23), reason="another model in older releases of transformers"
)
IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("start", [0, 4])
def test_logits_are_those_of_the_model_padded_or_not(start):
    model, mask = decoders.build("git", torch.float32), torch.ones(2, 11, dtype=torch.int64)
    mask[1, :start] = 0
    with torch.no_grad():
        own = model(IDS, attention_mask=mask).logits
        with lrp_fast.patched(model):
            found = model(IDS, attention_mask=mask).logits
    assert (found - own)[mask.bool()].abs().max() <= 1e-5 * own.abs().max()


def test_images_are_refused_and_a_cache_behind_a_mask():
    model = decoders.build("git", torch.float32)
    with lrp_fast.patched(model):
        with pytest.raises(ValueError, match="give text alone"):
            model(IDS, pixel_values=torch.zeros(2, 3, 28, 28))
        with pytest.raises(ValueError, match="does not run where a prompt of text is read"):
            model.git.image_encoder(torch.zeros(2, 3, 28, 28))
        cache = model(IDS[:, :5]).past_key_values
        behind = model(IDS[:, 5:], past_key_values=cache).logits
        assert (behind - model(IDS).logits[:, 5:]).abs().max() <= 1e-5 * behind.abs().max()
        with pytest.raises(ValueError, match="leave attention_mask out"):
            model(IDS[:, 5:], past_key_values=cache, attention_mask=torch.ones(2, 11))
