"""What a launch takes of a device: compiled for any architecture, without a GPU."""

import re
import subprocess
import tempfile
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from .common import Case, options

# Bytes of shared memory that a block may have, by architecture.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
TENSOR_MEMORY = 512  # columns


class Resources(NamedTuple):
    """Shared memory in bytes a block; registers a thread; stack and local memory in bytes a thread; columns of tensor
    memory a block (none but on sm_100).
    """

    shared: int
    registers: int
    stack: int
    tensor_memory: int = 0


def compiled(case: Case, architecture: int):
    """What Triton makes of one of `common.record`'s cases for sm_``architecture``: its ``asm`` and ``metadata``.

    Raises whatever the compiler raises.
    """
    _, fn, signature, constexprs, num_warps, num_stages = case
    target = GPUTarget("cuda", architecture, 32)
    found = {name: kind.partition(":")[::2] for name, kind in signature.items()}
    parse = make_backend(target).parse_attr
    attributes = {(i,): parse(attribute) for i, (_, attribute) in enumerate(found.values()) if attribute}
    source = ASTSource(fn, {name: kind for name, (kind, _) in found.items()}, constexprs, attributes)
    return triton.compile(source, target=target, options=options(fn, num_warps, num_stages))


def resources(case: Case, architecture: int) -> Resources:
    """Of one of `common.record`'s cases, on sm_``architecture``. Raises whatever the compiler raises."""
    result = compiled(case, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"\b{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    metadata = result.metadata
    return Resources(metadata.shared, registers, stack + local, metadata.tmem_size or 0)
