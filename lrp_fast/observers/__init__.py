"""What else to look at while a pass goes down the layers: ``attribute(..., observe=[...])``.

An observer is called as ``observer(seen)`` with a `Seen` for every layer, from the last one down, and target. What it
returns is kept: ``result.observed[i]`` is, of the i-th observer and the result's own target, the list of what it
returned, entry l of layer l. Those here return tensors on the CPU, and sum their list up in one table of their own,
which their docstrings give. No observer has a state: one may be given to any number of calls.
"""

from ..watch import Seen
from .heads import HeadRelevance, Heads
from .logit_lens import LogitLens, Scores
from .neurons import NeuronRelevance, Neurons
from .steps import Steps, Trajectory, departures

__all__ = [
    "HeadRelevance",
    "Heads",
    "LogitLens",
    "NeuronRelevance",
    "Neurons",
    "Scores",
    "Seen",
    "Steps",
    "Trajectory",
    "departures",
]
