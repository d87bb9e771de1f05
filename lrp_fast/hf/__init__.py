"""The only place that knows Hugging Face: scoped patching, the attention interface, coverage, model families."""

from . import handlers
from .altup import as_read, leads_with_streams, tokens_first
from .attention import real_tokens, register_attention
from .contributions import check_closed_form, contributions, has_closed_form
from .coverage import Coverage, UnsupportedModuleError, check, coverage
from .cutting import Pair, Place, changing, check_heads, check_pairs, neurons
from .definitions import gaps_to_definitions
from .directions import is_masked_language_model
from .families import at_rest, register
from .heads import (
    Head,
    has_labels,
    head_of,
    keeps_logits,
    logits_at,
    makes_labels,
    multi_label,
    pad_token,
    pooled_position,
    reads_all_tokens,
    share_a_row,
)
from .hooks import check_edges, check_hooks, is_watched
from .images import (
    check_images,
    check_images_edges,
    image_token,
    in_tiles,
    reads_images_both_ways,
    showing,
)
from .layers import decoder_layers, reads_causally
from .lens import decoding
from .linears import skipping
from .matrices import attention_matrices
from .owner import owned
from .patching import in_session, passing, patched
from .positions import keeping_rotations, made_for, position_limit
from .prefix import Prefix, carries_keys, logits_behind, prefix_of
from .replay import Recorded, attending, recording, replaying
from .sides import has_side_routes
from .sizes import LayerSize, head_dims, layer_sizes, weight_bytes
from .taken import check_language_model, check_weights, explained_class, reads_token_types
from .threads import here
from .together import padding_shows, prompts_meet
from .weights import device_of, unreadable_format
from .within import HeadSums, Sums, summing, why_no_neurons, why_no_parts
from .wrappers import give_language_model

register_attention()

__all__ = [
    "Coverage",
    "Head",
    "HeadSums",
    "LayerSize",
    "Pair",
    "Place",
    "Prefix",
    "Recorded",
    "Sums",
    "UnsupportedModuleError",
    "as_read",
    "at_rest",
    "attending",
    "attention_matrices",
    "carries_keys",
    "changing",
    "check",
    "check_closed_form",
    "check_edges",
    "check_heads",
    "check_hooks",
    "check_images",
    "check_images_edges",
    "check_language_model",
    "check_pairs",
    "check_weights",
    "contributions",
    "coverage",
    "decoder_layers",
    "decoding",
    "device_of",
    "explained_class",
    "gaps_to_definitions",
    "give_language_model",
    "handlers",
    "has_closed_form",
    "has_labels",
    "has_side_routes",
    "head_dims",
    "head_of",
    "here",
    "image_token",
    "in_session",
    "in_tiles",
    "is_masked_language_model",
    "is_watched",
    "keeping_rotations",
    "keeps_logits",
    "layer_sizes",
    "leads_with_streams",
    "logits_at",
    "logits_behind",
    "made_for",
    "makes_labels",
    "multi_label",
    "neurons",
    "owned",
    "pad_token",
    "padding_shows",
    "passing",
    "patched",
    "pooled_position",
    "position_limit",
    "prefix_of",
    "prompts_meet",
    "reads_all_tokens",
    "reads_causally",
    "reads_images_both_ways",
    "reads_token_types",
    "real_tokens",
    "recording",
    "register",
    "replaying",
    "share_a_row",
    "showing",
    "skipping",
    "summing",
    "tokens_first",
    "unreadable_format",
    "weight_bytes",
    "why_no_neurons",
    "why_no_parts",
]
