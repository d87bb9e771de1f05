"""Small random models that read images besides text, and prompts of theirs as processors make them."""

from __future__ import annotations

import pytest
import torch
import transformers

from lrp_fast.hf.wrappers import WRAPPERS
from tests.decoders import GEMMA4, GEMMA4_SMALL, RELEASE

IMAGE = 90  # the token in whose place an image's embeddings are read
TEXT = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
    "intermediate_size": 96, "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = TEXT | {"model_type": "llama"}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = VISION | {"image_size": 28, "patch_size": 14}
SIGLIP = SMALL | {"model_type": "siglip_vision_model"}
CLIP = SMALL | {"model_type": "clip_vision_model"}
PIXTRAL = VISION | {"model_type": "pixtral", "image_size": 32, "patch_size": 4, "head_dim": 8}
LARGER = VISION | {"image_size": [56, 56], "patch_size": [14, 14]}
PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28]], "vision_feature_layer": -1}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN = {
    "depth": 2, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2, "hidden_size": 32, "out_hidden_size": 64,
    "intermediate_size": 32,
}  # fmt: skip
WINDOWS = {"window_size": 8, "fullatt_block_indexes": [1]}
LLAMA4 = TEXT | {
    "attention_chunk_size": 8, "no_rope_layers": [1, 0, 1], "moe_layers": [1, 2], "intermediate_size_mlp": 80,
    "num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "llama4_text",
}  # fmt: skip
LLAMA4_VISION = VISION | {
    "image_size": 56, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16,
    "intermediate_size": 64,
}  # fmt: skip
PERCEIVER = {
    "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8,
    "num_key_value_heads": 1, "hidden_size": 64,
}  # fmt: skip
GOT = VISION | {
    "image_size": 64, "patch_size": 16, "output_channels": 16, "global_attn_indexes": [0], "window_size": 2,
    "mlp_dim": 16,
}  # fmt: skip
VQ = {"base_channels": 32, "latent_channels": 32, "num_res_blocks": 1, "num_embeddings": 8, "embed_dim": 8}


# Windows of three tokens, in which no image of four has room.
GEMMA3 = TEXT | {
    "model_type": "gemma3_text", "sliding_window": 3, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip
# As its larger models: in layers with a window alone.
GEMMA4_LARGE = TEXT | GEMMA4 | {
    "model_type": "gemma4_text", "sliding_window": 3, "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
}  # fmt: skip
# As its smaller: causally, with embeddings for each layer, which have none of images.
GEMMA4_SIDED = GEMMA4_SMALL | {"model_type": "gemma4_text", "sliding_window": 3}
GEMMA4_VISION = VISION | {
    "num_key_value_heads": 2, "head_dim": 8, "patch_size": 2, "pooling_kernel_size": 2, "position_embedding_size": 8,
}  # fmt: skip


def _old(vision, text=LLAMA, **more):
    """Of those that say ``image_token_index``."""
    return {"image_token_index": IMAGE, "text_config": text, "vision_config": vision} | more


def _new(vision, text=LLAMA, **more):
    return {"image_token_id": IMAGE, "text_config": text, "vision_config": vision} | more


def _qwen(text=MROPE, **vision):
    others = {"video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    return _new(QWEN | vision, TEXT | text, **others)


CONFIGS = {
    "aya_vision": _old(SIGLIP | {"image_size": 56}, downsample_factor=2, vision_feature_layer=-1),
    "cohere2_vision": _new(SIGLIP | {"image_size": 56}, downsample_factor=2, alignment_intermediate_size=32),
    "deepseek_vl": _new(SIGLIP),
    "exaone4_5": _qwen({"model_type": "llama"}, num_key_value_heads=2, **WINDOWS),
    "gemma3": _old(SIGLIP, GEMMA3, mm_tokens_per_image=4),
    "gemma4": _new(GEMMA4_VISION, GEMMA4_LARGE, video_token_id=94, audio_token_id=95, audio_config=None),
    "got_ocr2": _old(GOT),
    "idefics2": _new(SMALL, perceiver_config=PERCEIVER),
    "idefics3": _new(SMALL, scale_factor=1),
    "internvl": _new(LARGER | {"model_type": "internvl_vision"}),
    "janus": _new(SMALL | {"projection_dim": 64, "depth": 2}, vq_config=VQ),
    "lighton_ocr": _new(PIXTRAL),
    "llama4": _old(LLAMA4_VISION, LLAMA4, pad_token_id=0),
    "llava": _old(SIGLIP, vision_feature_select_strategy="full", vision_feature_layer=-1),
    "llava_next": _old(CLIP, **PINPOINTS),
    "llava_onevision": _old(SIGLIP, **PINPOINTS),
    "mistral3": _old(PIXTRAL, TEXT | {"model_type": "mistral", "sliding_window": None}),
    "qianfan_ocr": _new(LARGER),
    "qwen2_5_vl": _qwen(**WINDOWS),
    "qwen2_vl": _qwen(embed_dim=32, hidden_size=64, mlp_ratio=1),
    "qwen3_vl": _qwen(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
    "smolvlm": _new(SMALL, scale_factor=1),
    "vipllava": _old(CLIP, vision_feature_layers=[-1, -2]),
}
# How many tokens each of two images has, and the shape of their pixels, but for channels of their own.
SHAPES = {
    "gemma4": ([6, 4], (2, 24, 12)),
    "got_ocr2": ([1, 1], (2, 3, 64, 64)),
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), ([4, 4], (1, 2, 3, 28, 28))),
    **dict.fromkeys(("llava_next", "llava_onevision"), ([14, 14], (2, 3, 3, 28, 28))),
    **dict.fromkeys(("lighton_ocr", "mistral3"), ([6, 4], (2, 3, 16, 24))),
    **dict.fromkeys(("exaone4_5", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"), ([6, 4], (40, 24))),
    **dict.fromkeys(("aya_vision", "cohere2_vision", "internvl", "llama4", "qianfan_ocr"), ([4, 4], (2, 3, 56, 56))),
}
# Wrappers whose images are not taken, and why not.
REFUSED = {
    "gemma4_unified": "reads the tokens of an image in both directions",
    "video_llava": "reads images in a way of its own",
}


def build(home: str, dtype=torch.float64, seed: int = 0, of: str = "ForConditionalGeneration", **more):
    """With random weights that are large enough to matter, those of the vision tower too."""
    cls = getattr(transformers, f"{WRAPPERS[home]}{of}", None)
    if cls is None or (RELEASE < (5, 23) and home in ("llama4", "qwen3_vl")):
        # Its own code asks the tower for what that has not; positions that are taken for those of packed prompts.
        pytest.skip("this transformers does not have it, or does not run it")
    if home in ("gemma3", "gemma4") and RELEASE != (5, 23):
        pytest.skip("how it makes its masks has been read in that release alone")
    torch.manual_seed(seed)
    model = cls(cls.config_class(**CONFIGS[home] | more))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = {1: 0.5, 2: 1.5 * parameter[0].numel() ** -0.5}.get(parameter.ndim, 0.3)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + ("norm" in name))
        for one in (*model.parameters(), *model.buffers()):  # but for tables of complex numbers
            one.data = one.data.to(dtype if one.is_floating_point() else one.dtype)
    return model.eval()


def prompt(home: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Text, an image, text, another image and text; what a processor returns of them."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, 90, (count,), generator=generator).tolist() for count in (4, 5, 3)]
    counts, shape = SHAPES.get(home, ([4, 4], (2, 3, 28, 28)))
    first, second = ([92, *[IMAGE] * count, 93] for count in counts)
    ids = torch.tensor([[*texts[0], *first, *texts[1], *second, *texts[2]]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["pixel_values"] = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if home == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).int()
    elif home == "gemma4":  # patches of 6 x 4 and 4 x 4, of which 4 are a token
        places = [[(x, y) for y in range(4) for x in range(wide)] for wide in (6, 4)]
        given["image_position_ids"] = torch.tensor([places[0], places[1] + [(-1, -1)] * 8])
        given["mm_token_type_ids"] = (ids == IMAGE).int()
    elif len(shape) == 2:
        given["image_grid_thw"] = torch.tensor([[1, 4, 6], [1, 4, 4]])
        given["mm_token_type_ids"] = (ids == IMAGE).int()
    elif len(shape) == 5 and shape[0] == 1:
        given["pixel_attention_mask"] = torch.ones(*shape[:2], *shape[3:], dtype=torch.int64)
    elif len(shape) == 5:
        given["image_sizes"] = torch.tensor([[28, 56], [28, 56]])
    elif shape[2] != shape[3]:
        given["image_sizes"] = torch.tensor([[16, 24], [16, 16]])
    return given
