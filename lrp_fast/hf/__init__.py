"""The only place that knows Hugging Face: scoped patching, the attention interface, coverage, model families."""

from . import handlers
from .attention import real_tokens, register_attention
from .contributions import check_closed_form, contributions, has_closed_form
from .coverage import Coverage, UnsupportedModuleError, check, coverage
from .definitions import gaps_to_definitions
from .families import at_rest, register
from .hooks import check_edges, check_hooks, is_watched
from .layers import decoder_layers
from .patching import passing, patched
from .positions import keeping_rotations, made_for, position_limit
from .replay import Recorded, attending, recording, replaying
from .sides import has_side_routes
from .sizes import LayerSize, head_dims, layer_sizes, weight_bytes
from .taken import check_language_model, check_weights, language_model_class, reads_token_types
from .threads import here
from .together import padding_shows, prompts_meet
from .vocabulary import head_reads, keeps_logits, share_a_row, vocabulary_size
from .weights import device_of, unreadable_format
from .wrappers import give_language_model

register_attention()

__all__ = [
    "Coverage",
    "LayerSize",
    "Recorded",
    "UnsupportedModuleError",
    "at_rest",
    "attending",
    "check",
    "check_closed_form",
    "check_edges",
    "check_hooks",
    "check_language_model",
    "check_weights",
    "contributions",
    "coverage",
    "decoder_layers",
    "device_of",
    "gaps_to_definitions",
    "give_language_model",
    "handlers",
    "has_closed_form",
    "has_side_routes",
    "head_dims",
    "head_reads",
    "here",
    "is_watched",
    "keeping_rotations",
    "keeps_logits",
    "language_model_class",
    "layer_sizes",
    "made_for",
    "padding_shows",
    "passing",
    "patched",
    "position_limit",
    "prompts_meet",
    "reads_token_types",
    "real_tokens",
    "recording",
    "register",
    "replaying",
    "share_a_row",
    "unreadable_format",
    "vocabulary_size",
    "weight_bytes",
]
