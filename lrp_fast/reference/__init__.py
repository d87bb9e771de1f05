"""The definitions: every rule in plain dense torch, any float dtype, written to be read beside the papers.

Each operation has its forward and a ``*_backward`` that maps the relevance gradient of the output to that of the
inputs; relevance is always ``x * g``. Slow on purpose (contributions are formed one by one), imports nothing of ours.
"""

from .activation import activation, activation_backward
from .attention import among, attention, attention_backward, attention_mass, attention_weights, visible
from .delta import gated_delta_rule, gated_delta_rule_backward
from .edges import attention_edges, scan_edges
from .gated_mlp import gated_mlp, gated_mlp_backward, product_backward
from .lightning import lightning_attention, lightning_attention_backward
from .linear import epsilon_factor, linear, linear_backward
from .mlstm import mlstm, mlstm_backward
from .norm import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from .recurrence import recurrence, recurrence_backward
from .rotary import rotary, rotary_backward
from .wkv import wkv, wkv_backward

__all__ = [
    "activation",
    "activation_backward",
    "among",
    "attention",
    "attention_backward",
    "attention_edges",
    "attention_mass",
    "attention_weights",
    "epsilon_factor",
    "gated_delta_rule",
    "gated_delta_rule_backward",
    "gated_mlp",
    "gated_mlp_backward",
    "layer_norm",
    "layer_norm_backward",
    "lightning_attention",
    "lightning_attention_backward",
    "linear",
    "linear_backward",
    "mlstm",
    "mlstm_backward",
    "product_backward",
    "recurrence",
    "recurrence_backward",
    "rms_norm",
    "rms_norm_backward",
    "rotary",
    "rotary_backward",
    "scan_edges",
    "visible",
    "wkv",
    "wkv_backward",
]
