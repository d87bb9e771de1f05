"""Layer-wise relevance propagation through Hugging Face language models, at long context lengths.

`attribute` explains one decision; `patched` makes any backward pass through a model propagate relevance; `ops` are the
building blocks. See the README for the rules and the command line.
"""

from . import hf, observers, ops, study
from .ablation import Ablation, ablate
from .attribution import Attribution, attribute, load
from .batch import attribute_batch
from .between import between
from .comparison import Comparison, compare_answers
from .evaluate import evaluate
from .explained import Explained, Term, Token
from .graph import Graph, GraphSpec
from .hf import UnsupportedModuleError, patched
from .hops import Hops, hops
from .memory import Memory, Plan, plan
from .rules import Rules
from .session import session
from .sources import Sources

__version__ = "0.1.0"

__all__ = [
    "Ablation",
    "Attribution",
    "Comparison",
    "Explained",
    "Graph",
    "GraphSpec",
    "Hops",
    "Memory",
    "Plan",
    "Rules",
    "Sources",
    "Term",
    "Token",
    "UnsupportedModuleError",
    "ablate",
    "attribute",
    "attribute_batch",
    "between",
    "compare_answers",
    "evaluate",
    "hf",
    "hops",
    "load",
    "observers",
    "ops",
    "patched",
    "plan",
    "session",
    "study",
]
