"""Small random models of every encoder that transformers has with a masked language model's head."""

from __future__ import annotations

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tests import decoders

# What brings out what is particular about a family, or what its small model cannot do without.
PARTICULAR: dict[str, dict] = {
    **dict.fromkeys(("modernbert", "ultrabert"), {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "sliding_window": 3,
        "hidden_activation": "gelu", "mlp_bias": True, "norm_bias": True, "attention_bias": True, "decoder_bias": True,
    }),
    "albert": {"num_hidden_groups": 3, "hidden_act": "gelu"},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "pronunciation_vocab_size": 10,
                 "shape_vocab_size": 10, "concat_input": False},
    "ernie": {"use_task_id": False},
}  # fmt: skip
IN_FLOAT32 = ("modernbert",)  # it rotates queries and keys so, whatever the model's dtype
COVERED = (
    "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "gte",
    "jina_embeddings_v3", "megatron-bert", "modernbert", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm",
    "roc_bert", "roformer", "ultrabert", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
# Models that read other things beside the text, of which no small one has been built.
NOT_TRIED = ("modernvbert", "perceiver", "ultravbert")
# Why not, as the README says it, and what the refusal says; the first three are encoder-decoders.
REFUSED = {
    **dict.fromkeys(("bart", "mbart", "mvp"), ("an encoder-decoder", "is an encoder-decoder model")),
    "big_bird": ("its attention draws blocks at random", "BigBird"),
    "convbert": ("convolutions whose kernels hang on the tokens", "ConvBert"),
    "deberta": ("relative positions within its scores", "Deberta"),
    "deberta-v2": ("relative positions within its scores", "DisentangledSelfAttention, which multiplies"),
    "esm": ("a GELU spelt out, sums that are scaled by how many tokens are masked", "Esm"),
    "esmc": ("a norm and a GELU of its own", "Esmc"),
    "flaubert": ("it holds no layers, but lists of their parts", "Flaubert"),
    "fnet": ("a Fourier transform in place of attention", "FNetBasicFourierTransform, which computes _fft_c2c"),
    "funnel": ("pools tokens between its layers", "Funnel"),
    "ibert": ("quantised steps", "IBert|QuantEmbedding"),
    "layoutlm": ("a mask that its model makes by itself", "LayoutLMSelfAttention, which is given a mask"),
    "longformer": ("attention by blocks of its own", "Longformer"),
    "luke": ("entities beside the tokens", "Luke"),
    "mobilebert": ("embeddings of neighbouring tokens side by side", "MobileBertEmbeddings, which lets tokens meet"),
    "mpnet": ("relative positions within its scores", "MPNet"),
    "mra": ("attention by an approximation", "Mra"),
    "neomme": ("values without what lies along the token's own", "NeoMME"),
    "nystromformer": ("attention by an approximation", "Nystromformer"),
    "reformer": ("reversible layers", "AxialPositionEmbeddings"),
    "squeezebert": ("attention as convolutions", "SqueezeBert"),
    "tapas": ("tables", "Tapas"),
    "xlm": ("it holds no layers, but lists of their parts", "XLM"),
    "xmod": ("it is told a language", "Xmod"),
    "yoso": ("attention by hashing", "Yoso"),
}
ALL = tuple(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def blank(model_type: str):
    """Of its config's own size, without weights."""
    cls = getattr(transformers, MODEL_FOR_MASKED_LM_MAPPING_NAMES[model_type])
    told = {"esm": {"vocab_size": 33, "pad_token_id": 1}}
    with torch.device("meta"):
        return cls(cls.config_class(**told.get(model_type, {})))


def build(model_type: str, dtype=torch.float64, seed: int = 0, **more):
    """Of a few layers, with random weights that are large enough to matter."""
    cls = getattr(transformers, MODEL_FOR_MASKED_LM_MAPPING_NAMES[model_type])
    return decoders.built(cls, PARTICULAR.get(model_type, {}) | more, dtype, seed)
