"""The compile gate: what `compile_cases` of every kernels/*.py lists becomes machine code for every architecture,
within the shared memory of its devices and without a stack. No GPU is needed.

A module's ``compile_cases()`` returns (name, jit_fn, signature, constexprs, num_warps, num_stages) tuples. If it takes
an argument, it is called once an architecture with the compute capability, and lists what is launched there. In a
signature, ":16" after a type marks a value that is divisible by 16; pointers and strides always are here.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
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
# Bytes of stack a thread may have, by module, where not 0. norm: with Triton 3.6, LayerNorm's plain backward in
# float32 has a frame of 8 bytes on sm_89, at 40 registers as at 64. attention: spills of its largest heads, most of all
# head_dim 256 in 16 bits on sm_100 (dkv, 480); head_dim 64 to 128 in 16 bits keep to 40.
# linear: Triton 3.7 puts 8 bytes of gamma_forward's 16-bit tile for sm_100 there, at 255 registers.
STACK = {"norm": 8, "attention": 480, "linear": 8}
WORKERS = 2


def cases(module, architecture):
    listed = importlib.import_module(f"lrp_fast.kernels.{module}").compile_cases
    return listed(divmod(architecture, 10)) if inspect.signature(listed).parameters else listed()


def jobs():
    return [(m, a, i) for m in MODULES for a in SHARED for i in range(len(cases(m, a)))]


def resources(module, architecture, index):
    """(name, shared bytes, registers, bytes of stack and local memory) of one case."""
    name, fn, signature, constexprs, num_warps, num_stages = cases(module, architecture)[index]
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
    return name, compiled.metadata.shared, registers, stack + local


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(module, architecture) -> its cases' resources, or what went wrong, made by two processes that run this file."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(part)], stdout=subprocess.PIPE, text=True, env=environment)
        for part in range(WORKERS)
    ]
    with ThreadPoolExecutor(WORKERS) as readers:  # each pipe has to be emptied while both fill
        outputs = readers.map(lambda worker: worker.communicate()[0].splitlines(), workers)
    found = defaultdict(list)
    for module, architecture, result in (json.loads(line) for output in outputs for line in output):
        found[module, architecture].append(result)
    assert all(worker.returncode == 0 for worker in workers), "a compiling process died"
    return found


def work(part):
    for module, architecture, index in jobs()[part::WORKERS]:
        try:
            result = resources(module, architecture, index)
        except Exception as error:
            result = f"{cases(module, architecture)[index][0]}: {error!r}"
        print(json.dumps([module, architecture, result]), flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("module", MODULES)
def test_compiles_within_the_device_s_limits(module, architecture, compiled):
    results = compiled[module, architecture]
    failures = [result for result in results if isinstance(result, str)]
    assert len(results) == len(cases(module, architecture))
    for name, shared, registers, stack in (result for result in results if not isinstance(result, str)):
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


if __name__ == "__main__":
    work(int(sys.argv[1]))
