"""What a plan is reckoned from, for layers of every kind."""

from types import SimpleNamespace

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast.hf import decoder_layers, layer_sizes
from lrp_fast.hf.sizes import _layer_size


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


def test_layers_that_look_alike_have_one_size(family, tiny):
    """Those of another window, or another number of side tensors, do not."""
    model = tiny(family)
    for part in (None, decoder_layers(model)[1]):
        if part is not None:  # as accelerate says where a module computes
            part._hf_hook = SimpleNamespace(execution_device=torch.device("meta"), offload=True)
        apart = [_layer_size(layer, model.config.get_text_config()) for layer in decoder_layers(model)]
        assert layer_sizes(model) == apart
    assert apart[1].device.type == "meta" != apart[2].device.type


def test_layers_that_read_by_their_place_are_told_apart(tiny):
    model = tiny("qwen3")
    model.config.layer_types, model.config.attention_chunk_size = ["chunked_attention", "full_attention"] * 2, 5
    assert [size.window for size in layer_sizes(model)] == [5, None, 5]


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


def test_layers_that_share_weights_are_counted_without_them():
    with torch.device("meta"):
        configs = (transformers.AlbertConfig(num_hidden_groups=count) for count in (1, 12))
        shared, apart = map(transformers.AlbertForMaskedLM, configs)
    assert len(lrp_fast.plan(shared, 500, device="cpu").tiers) == 12
    assert len(layer_sizes(shared)) == 12 and layer_sizes(shared) == layer_sizes(apart)
