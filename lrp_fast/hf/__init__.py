"""The only place that knows Hugging Face: scoped patching, the attention interface, coverage, model families."""

from . import handlers
from .attention import register_attention
from .coverage import UnsupportedModuleError, check
from .families import decoder_layers, register
from .patching import patched

register_attention()

__all__ = ["UnsupportedModuleError", "check", "decoder_layers", "handlers", "patched", "register"]
