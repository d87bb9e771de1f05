"""Whether tokens are read causally or in both directions, and by which models."""

from __future__ import annotations

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .walk import without_adapters

_MASKED = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
_FAMILIES = [[name.replace("-", "_")] for name in MODEL_FOR_MASKED_LM_MAPPING_NAMES]


def is_causal(attention: nn.Module) -> bool:
    """Whether a query of this attention reads no key behind it, by what its module says of itself."""
    return bool(getattr(attention, "is_causal", getattr(attention, "is_decoder", True)))


def is_encoder(config) -> bool:
    """Whether a config is that of an encoder: of a family with masked language models, and not told to decode."""
    told = any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder"))
    return not told and getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_masked_language_model(model: nn.Module) -> bool:
    """Whether a model's logits at a position are of the token there, which a mask token stands for, and not of the next
    one."""
    core = without_adapters(model)
    names = {base.__name__ for base in type(core).__mro__}
    return not names.isdisjoint(_MASKED) and is_encoder(core.config)


def both_ways(module: nn.Module) -> str | None:
    """Why an attention is not causal though it is no encoder's, as the end of a sentence that names it; None where it
    may be explained."""
    config = getattr(module, "config", None)
    if getattr(module, "is_cross_attention", False):  # GPT-2's to an encoder, which text alone does not run
        return None
    if reads_both_ways(config):
        why = "use_bidirectional_attention in its config"
    elif not (is_causal(module) and getattr(config, "is_causal", True)) and not _is_of_an_encoder(module, config):
        why = "its is_causal or is_decoder, or its config's, is False"
    else:
        return None
    return (
        f"reads tokens in both directions ({why}), which lrp_fast has no rule for: lrp_fast explains decoders that "
        "read causally, and encoders"
    )


def _is_of_an_encoder(attention: nn.Module, config) -> bool:
    """Megatron-BERT's, RemBERT's and RoFormer's keep no config."""
    if config is not None:
        return is_encoder(config)
    return type(attention).__module__.split(".")[-2:-1] in _FAMILIES


def reads_both_ways(config) -> bool:
    """By what it is told; Gemma 4's "vision" is of images alone, for which it makes masks of its own."""
    return getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision")
