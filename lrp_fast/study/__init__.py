"""Studies: many cases explained in one run, which can be killed and goes on where it was; and what comes out of them.

`read_cases` reads them, `pairs` makes them of wrong answers, `run` explains them into a folder (`Folder` says what lies
in it), here or by the workers of `Ray`, `table` reads what came out, `compare` holds several runs of the same cases
against each other, and `page` shows all that in a browser. `Explainer` does batches in others' pipelines.
"""

from .cases import Case, read_cases
from .cluster import Explainer, Ray
from .comparison import Comparison, compare
from .folder import Folder
from .pages import page
from .pairs import pairs
from .runner import run
from .segments import instruction_following
from .table import table

__all__ = [
    "Case",
    "Comparison",
    "Explainer",
    "Folder",
    "Ray",
    "compare",
    "instruction_following",
    "page",
    "pairs",
    "read_cases",
    "run",
    "table",
]
