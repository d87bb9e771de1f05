"""Layer-wise relevance propagation through Hugging Face language models, at long context lengths.

`attribute` explains one decision; `patched` makes any backward pass through a model propagate relevance; `ops` are the
building blocks. See the README for the rules and the command line.
"""

from . import hf, ops
from .attribution import Attribution, attribute, load
from .batch import attribute_batch
from .between import between
from .graph import Graph, GraphSpec
from .hf import UnsupportedModuleError, patched
from .memory import Memory, Plan, plan
from .rules import Rules
from .targets import Explained, Term, Token

__version__ = "0.1.0"

__all__ = [
    "Attribution",
    "Explained",
    "Graph",
    "GraphSpec",
    "Memory",
    "Plan",
    "Rules",
    "Term",
    "Token",
    "UnsupportedModuleError",
    "attribute",
    "attribute_batch",
    "between",
    "hf",
    "load",
    "ops",
    "patched",
    "plan",
]
