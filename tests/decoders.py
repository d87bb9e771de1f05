"""Small random models of every decoder that transformers has."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

RELEASE = Version(transformers.__version__).release[:2]
# Older releases write many of these families otherwise, and those are refused; 5.24 rotates in float32 everywhere.
RECENT = pytest.mark.skipif(RELEASE < (5, 23), reason="other code in older releases of transformers")
TABLE = pytest.mark.skipif(RELEASE != (5, 23), reason="the table is of what transformers 5.23 has")
# What a config is told, where it knows the name.
SIZES = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "embed_dim": 64, "word_embed_proj_dim": 64, "dim": 64,
    "emb_dim": 64, "embedding_size": 64,
    "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3, "decoder_layers": 3, "encoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "n_inner": 96, "ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96, "dff": 96,
    "ffn_hidden_size": 96, "d_inner": 96, "intermediate_size_mlp": 96, "dim_ff": 96, "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 40, "shared_intermediate_size": 40, "moe_shared_expert_intermediate_size": 40,
    "expert_ffn_hidden_size": 40,
    "vocab_size": 97, "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128, "n_ctx": 128,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_k": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
    "mamba_n_heads": 8, "mamba_d_state": 16, "mamba_d_ssm": 128, "mamba_chunk_size": 8,
    "sliding_window": 7,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
# What brings out what is particular about a family, or what its small model cannot do without.
TEXT = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
    "intermediate_size": 96, "sliding_window": 7,
}  # fmt: skip
HEADS = {"num_key_value_heads": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
INDEXER = {"index_topk": 5, "index_head_dim": 12, "index_n_heads": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}
DECODER = {"is_decoder": True, "hidden_act": "gelu"}
# Chunks within the prompt, a layer without rotations, dense and mixed layers.
LLAMA4 = {
    "head_dim": 16, "attention_chunk_size": 4, "no_rope_layers": [1, 0, 1], "moe_layers": [1, 2], "floor_scale": 3,
    "intermediate_size_mlp": 80, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
# Global heads of another width that turn a part of them, keys that are values, a cap.
GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"], "head_dim": 16, "global_head_dim": 24,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "final_logit_softcapping": 3.0,
}  # fmt: skip
# Experts beside the MLP, as in its largest models.
GEMMA4_MIXED = GEMMA4 | {
    "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40,
    "hidden_size_per_layer_input": 0,
}  # fmt: skip
# Side routes, as in its smallest.
GEMMA4_SMALL = TEXT | GEMMA4 | {
    "num_hidden_layers": 5, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97,
    "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "attention_k_eq_v": False,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
# Gates that are cut off, some of them, and layers that read others' keys.
GEMMA3N = TEXT | {
    "num_hidden_layers": 5, "head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97,
    "num_kv_shared_layers": 2, "laurel_rank": 12, "altup_num_inputs": 3, "final_logit_softcapping": 3.0,
    "activation_sparsity_pattern": [0.8, 0.6, 0.0, 0.7, 0.0],
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
PARTICULAR: dict[str, dict] = {
    **dict.fromkeys(("deepseek_v3", "deepseek_v2", "axk1", "glm4_moe_lite", "youtu", "minicpm3"), HEADS),
    **dict.fromkeys(
        ("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "roberta", "roberta-prelayernorm",
         "xlm-roberta", "xlm-roberta-xl", "big_bird", "roc_bert", "megatron-bert", "rembert"),
        DECODER,
    ),
    **dict.fromkeys(("helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 16}),
    **dict.fromkeys(("gptj", "codegen"), {"rotary_dim": 8}),
    "git": {"vision_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
                              "num_attention_heads": 4, "image_size": 28, "patch_size": 14}},
    "mpt": {"attn_config": {"clip_qkv": 2.0, "softmax_scale": 0.3}},
    "roformer": DECODER | {"rotary_value": True},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 7},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2},
    "gemma3": {"text_config": TEXT | {"head_dim": 16}, "vision_config": TEXT | {"image_size": 28, "patch_size": 14}},
    **dict.fromkeys(("llama4", "llama4_text"), LLAMA4),
    "gemma3n_text": GEMMA3N,
    "gemma4_text": GEMMA4_MIXED, "gemma4": {"text_config": GEMMA4_SMALL, "vision_config": TEXT},
    "gemma4_unified_text": GEMMA4, "gemma4_unified": {"text_config": TEXT | GEMMA4},
    "cohere_compass_text": {  # layers without rotations between those with
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "logit_scale": 0.5,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
            "full_attention": None,
        },
    },
    "longcat_flash": HEADS | {  # of six experts, two do nothing
        "num_layers": 2, "num_hidden_layers": 4, "zero_expert_num": 2, "moe_topk": 3, "num_experts_per_tok": 3,
        "ffn_hidden_size": 96, "expert_ffn_hidden_size": 40, "head_dim": 8, "routed_scaling_factor": 1.5,
    },
    "phi4_multimodal": {
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "vision_config": TEXT | {"image_size": 28, "patch_size": 14},
        "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
                         "ext_pw_out_channel": 16, "nemo_conv_channels": 16, "depthwise_separable_out_channel": 16},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    },
    "roc_bert": DECODER | {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "pronunciation_vocab_size": 10,
                           "shape_vocab_size": 10, "concat_input": False, "enable_pronunciation": False,
                           "enable_shape": False},
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"),
        {"head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
         "linear_value_head_dim": 12, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention", "linear_attention"],
                    "num_key_value_heads": 4, "linear_head_dim": 12, "linear_num_heads": 4, **EXPERTS},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"],
                       "num_key_value_heads": 4, "head_dim": 12, **EXPERTS},
    "minimax": {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 12,
                "linear_attn_alpha_factor": 1.2, "linear_attn_beta_factor": 0.7, "mlp_alpha_factor": 1.3,
                "mlp_beta_factor": 0.8, "full_attn_alpha_factor": 1.1, "full_attn_beta_factor": 0.9},
    "recurrent_gemma": {"attention_window_size": 7, "lru_width": 48, "logits_soft_cap": 3.0,
                        "block_types": ["recurrent", "attention"]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
              "num_hidden_layers": 4, "num_key_value_heads": 4, "n_mamba_heads": 2, "mamba_d_state": 8,
              "mamba_dt_rank": 6},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
               "num_hidden_layers": 5, "num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_d_state": 8,
               "mamba_ngroups": 2, "num_mem_blocks": 2, "use_shared_attention_adapter": True, "adapter_rank": 8,
               "use_mem_rope": True},
    "rwkv": {"rescale_every": 2, "attention_hidden_size": 48},
    "xlstm": {"gate_soft_cap": 2.0, "output_logit_soft_cap": 3.0},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv"]},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"],
                    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
                    "linear_value_head_dim": 12},
    **dict.fromkeys(("deepseek_v32", "axk2"), HEADS | INDEXER),
    "hy_v4": HEADS | INDEXER | {"indexer_types": ["full", "shared", "full"], "hc_mult": 3, "swiglu_limit": 0.5},
    "glm_moe_dsa": HEADS | INDEXER | {"indexer_types": ["full", "shared", "full"]},
    **dict.fromkeys(
        ("dots3_note", "dots3_note_text"),
        HEADS | INDEXER | {
            "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"], "head_dim": 20,
            "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 24, "swa_kv_lora_rank": 20,
            "swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 14,
            "shared_experts_intermediate_size": 40,
        },
    ),
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"], "head_dim": 16, "rotary_dim": 8,
        "mlp_layer_types": ["dense", "sparse", "sparse"], "dense_intermediate_size": 96, "intermediate_size": 40,
        "swiglu_limit": 1.0, "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 2, "index_topk_blocks": 3,
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 1e4},
             "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "fuyu": {"text_config": TEXT | {"model_type": "persimmon", "num_key_value_heads": 4}},
    "doge": {"sliding_window": None, "keep_window_size": 12, "attention_bias": True},
    "jetmoe": {"kv_channels": 16},
    "xmod": DECODER | {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
    "phimoe": {"router_jitter_noise": 0.3, "attention_bias": True, "lm_head_bias": True},
    "beam": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "head_dim": 16,
             "mlp_layer_types": ["dense", "sparse", "sparse"], "final_logit_softcapping": 3.0, "attention_bias": True},
}  # fmt: skip


# They rotate queries and keys, or carry a state, in float32 whatever the model's dtype: see `tests.oracles.wide`.
IN_FLOAT32 = (
    "cohere", "cohere2", "cohere2_moe", "deepseek_v2", "ernie4_5", "ernie4_5_moe", "falcon_mamba", "hy_v3", "llama4",
    "llama4_text", "mamba", "mamba2", "modernbert-decoder", "mllama", "nemotron_h",
)  # fmt: skip
# What their own code says of their softmax or experts is another product than the one of the rule, and detached it is
# another rule: here by plain gradients, and by cp, where it has no such product.
RULES = dict.fromkeys(["granite_swa", "granitemoe_swa"], ["cp", "gradient"])
# No graph, and why; FADING: none under plain gradients.
_OPEN = "no closed form is known of its edges"
_MORE = "its layers read more than what the one below puts out"
WITHOUT_GRAPH = {
    "bailing_hybrid": _OPEN, "gemma3n_text": _MORE, "gemma4": _MORE, "kimi_linear": _OPEN,
    "longcat_flash": "a layer holds two attentions", "rwkv": _OPEN, "zamba": _MORE, "zamba2": _MORE,
}  # fmt: skip
FADING = (
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h",
    "recurrent_gemma", "xlstm",
)  # fmt: skip
# Language models with towers beside them: tests/hf/test_wrappers.py.
WRAPPERS = ("gemma3n", "got_ocr2", "moss_transcribe_diarize")
_BESIDE = "its layers hand on more than the hidden states"
# Why not, as the README says it, and what the refusal says.
REFUSED = {
    "big_bird": ("its attention draws blocks at random", "BigBird"),
    "bigbird_pegasus": ("its attention is for encoders", "is masked otherwise than in both directions"),
    "blt": ("byte patches", "Blt"),
    "cpmant": ("a prompt of its own before the tokens", "CpmAntModel, which lets tokens meet, or changes their places"),
    "deepseek_v4": ("keys that compress tokens, mixed streams", "DeepseekV4"),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        ("it drafts beside another model, whose states and keys it reads", "reads the hidden states and keys of"),
    ),
    "hrm_text": ("recurrent stacks", "HrmTextModel"),
    "inkling2_text": (_BESIDE, "reads more than what its last decoder layer puts out"),
    "inkling_text": ("relative positions, short convolutions", "Inkling"),
    "musicgen": ("several codebooks", "Musicgen"),
    "musicgen_melody": ("several codebooks", "Musicgen"),
    "prophetnet": ("several tokens predicted at once", "ProphetNetDecoder, which lets tokens meet"),
    "qwen4_exp": ("tables of n-grams, mixed streams", "Qwen4ExpTextDecoderLayer"),
    "qwen4_exp_text": ("tables of n-grams, mixed streams", "Qwen4ExpTextDecoderLayer"),
    "reformer": ("hashed attention, reversible layers", "AxialPositionEmbeddings"),
    "xlm": ("it holds no layers, but lists of their parts", "XLM"),
    "xlnet": ("relative positions", "XLNetModel, which cuts"),
    "zaya": (_BESIDE, "ZayaDecoderLayer, which is a decoder layer that hands on"),
}
# What the configs of some of these cannot do without.
QWEN4_EXP = {
    "num_hidden_layers": 4, "ple_layer_ids": [2], "ngram_vocab_size_base": 1000, "eos_token_id": 1,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip
OF_REFUSED: dict[str, dict] = {
    "reformer": {"is_decoder": True}, "qwen4_exp": QWEN4_EXP, "qwen4_exp_text": QWEN4_EXP,
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}  # fmt: skip
ALL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
COVERED = tuple(name for name in ALL if name not in (*REFUSED, *WRAPPERS))


def blank(model_type: str):
    """Of its config's own size, without weights."""
    cls = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        for config in (transformers.Gemma4TextConfig, transformers.Gemma4UnifiedTextConfig):
            if "assistant" in model_type:  # all of whose layers share keys, which transformers 5.23 refuses
                patch.setattr(config, "kv_sharing_modes", property(lambda self: ["reuse"] * self.num_hidden_layers))
        return cls(cls.config_class(**OF_REFUSED.get(model_type, {})))


def build(model_type: str, dtype=torch.float64, seed: int = 0, name: str | None = None, **more):
    """Of a few layers, with random weights that are large enough to matter; of another class by its ``name``."""
    cls = getattr(transformers, name or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    return built(cls, PARTICULAR.get(model_type, {}) | more, dtype, seed)


def built(cls, particular: dict, dtype=torch.float64, seed: int = 0):
    """As `build`, of any class, whose config is told what is particular about it."""
    known = {*cls.config_class().to_dict(), "pad_token_id", "tie_word_embeddings"}
    settings = {name: value for name, value in SIZES.items() if name in known}
    config = cls.config_class(**settings | particular)
    with torch.device("meta"):
        size = sum(map(torch.numel, cls(config).parameters()))
    if size > 3_000_000:
        raise ValueError(f"{cls.__name__} has {size:,} parameters: tell its config to be smaller")
    torch.manual_seed(seed)
    model = cls(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = {1: 0.5, 2: 1.5 * parameter[0].numel() ** -0.5}.get(parameter.ndim, 0.3)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + ("norm" in name))
        for name, buffer in model.named_buffers():
            # Of a router's choice, not the first GPT's mask; Gemma 4's scale of a layer.
            if ("bias" in name or "layer_scalar" in name) and buffer.is_floating_point() and buffer.ndim < 3:
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.1)
            if "router_input_scale" in name:  # Gemma 3n's, for its tanh to bend
                buffer.fill_(0.5)
    return model.to(dtype).eval()
