"""Every operation of `lrp_fast.ops`, called as models call it, beside its definition in `lrp_fast.reference`.

`cases` is the list, `hold` runs one of them on a device and says how far it is from its definition and who computed it.
The doctor holds all of them, the tuner those that it is about to time.
"""

from dataclasses import replace

from . import attention, edges, linear, pointwise
from .case import FULL, SMALL, Case, Size
from .hold import Held, hold

__all__ = ["FULL", "SMALL", "Case", "Held", "Size", "case", "cases", "hold"]


def cases(size: Size = FULL) -> list[Case]:
    """All of them, forward and backward, in the forms that a kernel tells apart."""
    return [*attention.cases(size), *edges.cases(size), *linear.cases(size), *pointwise.cases(size)]


def case(operation: str, form: str, head_dim: int, size: Size = FULL) -> Case:
    """The one of that name, with heads of ``head_dim`` features."""
    sized = replace(size, head_dims=(head_dim,))
    (found,) = (one for one in cases(sized) if (one.operation, one.form) == (operation, form))
    return found
