"""The compile gate: what `compile_cases` of every kernels/*.py lists becomes machine code for every architecture,
within the shared memory of its devices and without a stack. No GPU is needed.

A module's ``compile_cases()`` returns (name, jit_fn, signature, constexprs, num_warps, num_stages) tuples. If it takes
an argument, it is called once an architecture with the compute capability, and lists what is launched there. In a
signature, ":16" after a type marks a value that is divisible by 16; pointers and strides always are here.
"""

import importlib
import inspect
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = Path(__file__).parents[2] / "kernels"
MODULES = sorted(
    path.stem for path in KERNELS.glob("*.py") if re.search(r"^def compile_cases\(", path.read_text(), re.MULTILINE)
)
# Bytes of shared memory that a block may have on the architecture's devices.
SHARED = {80: 166912, 89: 101376, 90: 232448, 100: 232448}
# Bytes of stack a thread, by module, where they are not 0: registers that did not suffice.
STACK = {"attention": 0}


def cases(module, architecture):
    listed = importlib.import_module(f"lrp_fast.kernels.{module}").compile_cases
    return listed(divmod(architecture, 10)) if inspect.signature(listed).parameters else listed()


def _compile(module, architecture, index, cache):
    """(name, shared bytes, registers, stack bytes) of one case; in a process of the pool."""
    os.environ["TRITON_CACHE_DIR"] = cache
    name, fn, signature, constexprs, num_warps, num_stages = cases(module, architecture)[index]
    types = {k: v.partition(":")[0] for k, v in signature.items()}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (k, v) in enumerate(signature.items())
        if v.endswith(":16") or types[k].startswith("*") or (k.startswith("stride") and types[k] != "constexpr")
    }
    source = ASTSource(fn, types, constexprs, divisible)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    return name, compiled.metadata.shared, registers, stack + local


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("triton"))
    # "spawn": the tests' process has threads by now, and Triton must read the environment anew.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:

        def submit(module, architecture):
            return [
                executor.submit(_compile, module, architecture, i, cache)
                for i in range(len(cases(module, architecture)))
            ]

        yield {(m, a): submit(m, a) for m in MODULES for a in SHARED}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("module", MODULES)
def test_compiles_within_the_device_s_limits(module, architecture, pool):
    failures = []
    for job in pool[module, architecture]:
        name, shared, registers, stack = job.result()
        line = f"sm_{architecture} {name}: shared {shared}, registers {registers}, stack {stack}"
        print(line)  # pytest -rP shows the table
        if shared > SHARED[architecture] or stack > STACK.get(module, 0):
            failures.append(line)
    assert not failures, "\n".join(failures)


def test_every_kernel_is_listed():
    """A jit kernel that is launched but not in `compile_cases` would escape the gate."""
    listed = {fn.__name__ for module in MODULES for fn in (case[1] for case in cases(module, 90))}
    written = set()
    for path in KERNELS.glob("*.py"):
        written |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    assert written and written <= listed
