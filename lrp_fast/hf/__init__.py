"""The only place that knows Hugging Face: scoped patching, the attention interface, coverage, model families."""

from . import handlers
from .attention import real_tokens, register_attention
from .contributions import contributions
from .coverage import Coverage, UnsupportedModuleError, check, coverage
from .definitions import gaps_to_definitions
from .families import decoder_layers, register
from .patching import patched
from .positions import keeping_rotations, made_for, position_limit
from .replay import Recorded, recording, replaying, tracing
from .sizes import LayerSize, device_of, layer_sizes, weight_bytes
from .vocabulary import share_a_row, vocabulary_size
from .weights import unreadable_format

register_attention()

__all__ = [
    "Coverage",
    "LayerSize",
    "Recorded",
    "UnsupportedModuleError",
    "check",
    "contributions",
    "coverage",
    "decoder_layers",
    "device_of",
    "gaps_to_definitions",
    "handlers",
    "keeping_rotations",
    "layer_sizes",
    "made_for",
    "patched",
    "position_limit",
    "real_tokens",
    "recording",
    "register",
    "replaying",
    "share_a_row",
    "tracing",
    "unreadable_format",
    "vocabulary_size",
    "weight_bytes",
]
