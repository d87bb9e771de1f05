"""What goes wrong on a machine, told apart: memory that is short, and a device that is gone."""

from __future__ import annotations

import torch

from ..hf import device_of
from ..memory import Memory, _size, planned
from ..question import Question

_BOUNDLESS = Memory(device_budget=2**62, host_budget=2**62)
_SHORT = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def sentence(error: BaseException, what: str, ours: tuple = (ValueError,)) -> str:
    """What a case's row says. Refusals of our own are sentences, and so is what PyTorch says; of other errors, the kind
    says more than their words."""
    if isinstance(error, ours):
        return str(error)
    if type(error) in (RuntimeError, MemoryError, torch.OutOfMemoryError):
        return first_line(error)
    return f"{what} with {type(error).__name__} ({first_line(error)})"


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _SHORT)


def is_lost(error: BaseException, model) -> bool:
    """Whether the model's CUDA device no longer answers: nothing in this process can be computed on it any more."""
    if is_out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    device = device_of(model.get_input_embeddings())
    if device.type != "cuda" or not isinstance(error, RuntimeError):
        return False
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return True
    return False


def no_room(model, asked: Question, how, why: str, longest: int) -> str:
    """A sentence for a case that memory does not suffice for, though it has a pass of its own: what would."""
    counts = {"positions": len(asked.positions), "graph": how.graph, "tolerance": how.tolerance}
    least = planned(model, len(asked.ids), how.rules, _BOUNDLESS, **counts).least
    needed = " and ".join(f"{_size(size)} on {device}" for device, size in least.items())
    passed = f"; the longest that fitted had {longest:,}" if longest else ""
    return (
        f"out of memory at {len(asked.ids):,} tokens in a pass of its own ({why}): at least {needed} above the model "
        f"have to be free{passed}"
    )
