"""What a plan is reckoned from, for layers of every kind."""

import pytest
import torch

import lrp_fast
from lrp_fast.hf import layer_sizes


def test_sizes_are_those_of_the_modules(family, tiny):
    model = tiny(family)
    (size, *_) = layer_sizes(model)
    features = getattr(model.config, "head_dim", None) or 16
    keys = {"gpt_neox": 4, "gpt2": 4, "falcon": 1}.get(family, 2)
    assert (size.hidden, size.heads, size.query, size.key) == (64, 4, 4 * features, keys * features)
    matrices = sum(p.numel() for p in model.base_model.get_submodule(_layers(model)).parameters() if p.ndim > 1)
    weights = size.attention_weights + size.mlp_weights
    if family in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"):
        assert 0.4 * matrices < weights < matrices, "two experts of five"
    else:
        norms = 6 * 16 if family == "cohere" else 0  # one weight a head
        assert weights == matrices - norms
    windowed = ("mistral", "phi3", "olmo3", "gemma2", "gemma3", "mixtral", "gpt_oss")
    assert family in ("qwen2", "qwen2_moe") or size.window == (7 if family in windowed else None)
    assert lrp_fast.plan(model, 23).tiers == ("graph",) * 3


def _layers(model):
    return next(name for name, part in model.base_model.named_modules() if name.endswith((".0",)))


def test_a_mixture_counts_the_experts_of_a_token(tiny):
    (size, *_) = layer_sizes(tiny("qwen3_moe"))
    assert size.mlp_weights == 2 * 3 * 64 * 40 + 5 * 64  # two experts and the router
    assert size.mlp == 2 * (40 + 64) and size.skipped_weights == 0


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss"])
def test_a_model_on_no_device_can_be_planned(family, tiny):
    model = tiny(family, max_position_embeddings=1000).to("meta")
    assert lrp_fast.plan(model, 1000, device="cpu").peak["cpu"] > 0
    assert torch.device("meta") in {size.device for size in layer_sizes(model)}
