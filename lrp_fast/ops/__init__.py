"""Differentiable building blocks whose backward pass is a propagation rule.

Each takes ``rule``, a name or `lrp_fast.Rules`, runs the ordinary operation forward, and hands back relevance
gradients to its inputs (``x * x.grad`` is relevance). Weights never get a gradient, and
gradients go back once, one at a time: ``create_graph=True`` and ``is_grads_batched=True`` raise a ValueError.
"""

from .activation import activation, activation_jvp
from .attention import Kept, Trace, attention, attention_forward
from .bounded import read_tolerance
from .decayed import convolved_edges, decayed_edges, fading_attention_edges
from .delta import gated_delta_rule
from .delta_edges import delta_edges
from .edges import attention_edges, crossing
from .gated_mlp import gated_mlp
from .identity import identity, product
from .lightning import Fading, lightning_attention
from .linear import linear, linear_jvp, linear_unread
from .linear_by_rows import Rows, linear_by_rows, linear_by_rows_jvp
from .mixing import Mixed, Mixing, Parts, layer_crossing, layer_edges, mixed, reached_rows
from .mlstm import mlstm
from .mlstm_edges import mlstm_edges
from .norm import layer_norm, layer_norm_jvp, rms_norm, rms_norm_jvp
from .recurrence import recurrence
from .relevance import node_relevance
from .rotary import rotary
from .wkv import wkv

__all__ = [
    "Fading",
    "Kept",
    "Mixed",
    "Mixing",
    "Parts",
    "Rows",
    "Trace",
    "activation",
    "activation_jvp",
    "attention",
    "attention_edges",
    "attention_forward",
    "convolved_edges",
    "crossing",
    "decayed_edges",
    "delta_edges",
    "fading_attention_edges",
    "gated_delta_rule",
    "gated_mlp",
    "identity",
    "layer_crossing",
    "layer_edges",
    "layer_norm",
    "layer_norm_jvp",
    "lightning_attention",
    "linear",
    "linear_by_rows",
    "linear_by_rows_jvp",
    "linear_jvp",
    "linear_unread",
    "mixed",
    "mlstm",
    "mlstm_edges",
    "node_relevance",
    "product",
    "reached_rows",
    "read_tolerance",
    "recurrence",
    "rms_norm",
    "rms_norm_jvp",
    "rotary",
    "wkv",
]
