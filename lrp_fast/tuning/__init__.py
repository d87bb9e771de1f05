"""The tuner: times tiles of our kernels, and PyTorch's own attention beside them, and remembers what was fastest.

What it found lies in the user's cache, for this device and these versions alone (`lrp_fast.ops.measured`). Nothing
tunes itself when a kernel is launched.
"""

from .bench import Bench, bench_of
from .tune import Step, ranked, tune

__all__ = ["Bench", "Step", "bench_of", "ranked", "tune"]
