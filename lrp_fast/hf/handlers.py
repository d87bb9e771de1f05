"""How a module of a model comes to obey a rule, by its operation: ready handlers, for `lrp_fast.hf.register` too.

A handler takes ``(module, rules)`` and returns the instance attributes that are laid over the module while it is
patched; nothing means that the module's own code is right under every rule. Those of a few families' own operations
have rooms beside these (`families`).
"""

# ruff: noqa: F401

from .activations import activation, bloom_gelu, gelu, pointwise, spelt_out_activation
from .attentions import (
    ATTENTIONS,
    attention,
    capped_attention,
    dynamic_mask_attention,
    gated_attention,
    indexed_attention,
    mixture_of_attentions,
)
from .caps import capped_language_model, language_model_with_cap
from .glue import (
    decoder_layer,
    dropout,
    holder,
    hyper_connection,
    idle,
    leave,
    parallel_decoder_layer,
    part,
    pre_norm_decoder_layer,
    spelt_out,
    streams_decoder_layer,
)
from .linears import LINEARS, WHOLE, adapted_embedding, adapted_linear, linear
from .mlps import falcon_mlp, fused_gated_mlp, gated_mlp, gpt2_mlp, mlp, spelt_out_mlp
from .norms import (
    NORMS,
    centred_rms_norm,
    gated_norm,
    layer_norm,
    offset_rms_norm,
    rms_norm,
    spelt_out_norm,
    wide_rms_norm,
)
from .overlay import Handler
