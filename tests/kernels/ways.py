"""The three ways in which kernels run here: in Triton's interpreter, compiled on a GPU, or compiled and then executed
on the CPU (``--ptx``, see `executor`). Files of tests are imported after `choose`, and take constants from here.
"""

import pytest
import torch
import triton

COLLECTED = pytest.StashKey[list[str]]()  # names of all tests that were found, before any are chosen from
# Read by Triton when it is imported, so it has to come from the environment.
INTERPRETED = triton.knobs.runtime.interpret
EXECUTED = False
ON_GPU = not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
DTYPES = [SINGLE, HALF] if INTERPRETED else [SINGLE, HALF, BRAIN]


def choose(target: int | None) -> None:
    global EXECUTED, ON_GPU, DEVICE, DTYPES
    if target is not None:
        EXECUTED, ON_GPU, DEVICE, DTYPES = True, False, "cpu", [BRAIN, HALF]
