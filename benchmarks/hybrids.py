"""Random models, small enough for two cores: of layers that carry a state, and of attention alone. No weights of such
models are at hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import transformers

FOLDER = Path(__file__).resolve().parents[1] / "build" / "hybrids"
SIZES = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1408, "vocab_size": 4096, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Half as deep: what transformers has for these goes step by step over the tokens, where no GPU is.
FEW = {"num_hidden_layers": 4}
# name: model class, what its config is told besides, and what it brings
MODELS = {
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        FEW | {"linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 64,
               "linear_value_head_dim": 64, "mlp_only_layers": [0, 1, 2, 3]},
        "gated delta rule, attention in every fourth layer",
    ),
    "bamba": (
        "BambaForCausalLM",
        FEW | {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 64, "attn_layer_indices": [3]},
        "Mamba 2, attention in every fourth layer",
    ),
    "mamba": (
        "MambaForCausalLM",
        {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "state_size": 16},
        "Mamba",
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        FEW | {"layer_types": ["conv", "conv", "full_attention", "conv"]},
        "short convolutions, attention in every fourth layer",
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        FEW | {"intermediate_size": 2816, "attention_window_size": 2048},
        "RG-LRU, attention within a window in every third layer",
    ),
}  # fmt: skip
# Of attention alone: norms of queries and keys, caps and windows, a mixture.
ATTENTION = {
    "qwen3": ("Qwen3ForCausalLM", {}, "norms of queries and keys"),
    "gemma2": ("Gemma2ForCausalLM", {"sliding_window": 128}, "caps, windows in every other layer"),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "num_hidden_layers": 4}, "a mixture of 4 experts"),
}


def config_of(name: str) -> tuple[type, dict]:
    """The model's class, and what its config is told."""
    cls, more, _ = (MODELS | ATTENTION)[name]
    model_class = getattr(transformers, cls)
    known = model_class.config_class().to_dict()
    return model_class, {key: one for key, one in SIZES.items() if key in known or key.endswith("token_id")} | more


def model_directory(name: str) -> Path:
    """Of the saved model, which is made where there is none of this config yet."""
    model_class, told = config_of(name)
    folder = FOLDER / f"{name}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]}"
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        model_class(model_class.config_class(**told)).save_pretrained(folder)
    return folder
