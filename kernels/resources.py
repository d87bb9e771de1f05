"""What a launch takes of a device: compiled for any architecture, without a GPU."""

import re
import subprocess
import tempfile
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .common import Case

# Bytes of shared memory that a block may have, by architecture.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}


class Resources(NamedTuple):
    """Shared memory in bytes a block; registers a thread; stack and local memory in bytes a thread."""

    shared: int
    registers: int
    stack: int


def resources(case: Case, architecture: int) -> Resources:
    """Of one of `common.record`'s cases, on sm_``architecture``. Raises whatever the compiler raises."""
    _, fn, signature, constexprs, num_warps, num_stages = case
    types = {k: v.partition(":")[0] for k, v in signature.items()}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (k, v) in enumerate(signature.items())
        if v.endswith(":16") or types[k].startswith("*") or (k.startswith("stride") and types[k] != "constexpr")
    }
    source = ASTSource(fn, types, constexprs, divisible)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"\b{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    return Resources(compiled.metadata.shared, registers, stack + local)
