"""Random models with layers that carry a state, small enough for two cores: no weights of such a model are at hand."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

FOLDER = Path(__file__).resolve().parents[1] / "build" / "hybrids"
SIZES = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1408, "vocab_size": 4096, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_d_ssm": 1024}
# name: model class, what its config is told besides, and what it brings
MODELS = {
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {"linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
         "mlp_only_layers": list(range(8))},
        "gated delta rule, attention in every fourth layer",
    ),
    "bamba": ("BambaForCausalLM", MAMBA | {"attn_layer_indices": [3, 7]}, "Mamba 2, attention in every fourth layer"),
    "falcon_h1": ("FalconH1ForCausalLM", MAMBA, "Mamba 2 beside attention in every layer"),
    "mamba": ("MambaForCausalLM", {"state_size": 16}, "Mamba"),
    "lfm2": (
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "conv", "full_attention", "conv"] * 2},
        "short convolutions, attention in every fourth layer",
    ),
}  # fmt: skip


def model_directory(name: str) -> Path:
    """Of the saved model, which is made where it is not there yet."""
    folder = FOLDER / name
    if not (folder / "config.json").is_file():
        cls, more, _ = MODELS[name]
        model_class = getattr(transformers, cls)
        known = model_class.config_class().to_dict()
        told = {key: value for key, value in SIZES.items() if key in known or key.endswith("token_id")}
        torch.manual_seed(0)
        model_class(model_class.config_class(**told | more)).save_pretrained(folder)
    return folder
