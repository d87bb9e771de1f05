"""Whether an explanation is true: scores of tokens held against what the model does when its prompt changes.

`evaluate` judges methods by protocols on cases, and `plan` counts what that would take; `METHODS` and `PROTOCOLS` are
those that have a name, `scores_from` reads scores that something else has made. `run` is `evaluate` into a folder,
which goes on where it was; `search` finds a rule's stabilisers, `preferred` turns cases the way that the model decides,
and `load_set` loads public ones.
"""

from .folder import run
from .given import Scores, scores_from
from .judging import Cost, Method, evaluate, plan
from .methods import METHODS
from .perturb import REPLACEMENTS
from .preferred import preferred
from .protocols import PROTOCOLS, Protocol
from .result import Evaluation, Row, load
from .scene import Scene
from .search import search
from .sets import SETS, load_set

__all__ = [
    "METHODS",
    "PROTOCOLS",
    "REPLACEMENTS",
    "SETS",
    "Cost",
    "Evaluation",
    "Method",
    "Protocol",
    "Row",
    "Scene",
    "Scores",
    "evaluate",
    "load",
    "load_set",
    "plan",
    "preferred",
    "run",
    "scores_from",
    "search",
]
