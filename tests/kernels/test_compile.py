"""The compile gate: what `compile_cases` of every kernels/*.py lists becomes machine code for every architecture,
within the shared memory of its devices and without a stack. No GPU is needed.

A module's ``compile_cases(on)`` lists what it launches on a device of compute capability ``on``.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lrp_fast.kernels.resources import SHARED, resources

KERNELS = Path(__file__).parents[2] / "kernels"
MODULES = sorted(
    path.stem for path in KERNELS.glob("*.py") if re.search(r"^def compile_cases\(", path.read_text(), re.MULTILINE)
)
ARCHITECTURES = (80, 89, 90, 100)
# Bytes of stack a thread may have, where not 0, over all architectures and versions of Triton: by "module/case", the
# first pattern that fits.
STACK = {
    # Full float32 goes without tensor cores, and holds both operands in registers.
    "attention/256-float32-*": 216,
    "attention/128-float32-all-flags-forward_kernel": 176,
    # With Triton 3.9 on sm_90, where 3.6 spills nothing.
    "attention/256-bfloat16-plain-dkv_kernel": 144,
    "attention/*-bfloat16-plain-dkv_kernel": 80,
    "attention/*": 48,
    # The lists are kept beside the sums. With Triton 3.9 on sm_90, where 3.6 and 3.7 spill nothing, 312 and 112 bytes.
    "edges/128-*-strongest_kernel": 312,
    "edges/*-strongest_kernel": 168,
    "edges/*": 112,
    # Rows so wide that 1,024 threads hold 32 elements each: they were refused otherwise.
    "norm/layer_norm_backward-*-32768-*": 344,
    # With Triton 3.6 on sm_89 a frame, at 40 registers as at 64.
    "norm/layer_norm_backward-float32-4096-*": 8,
    # With Triton 3.7 on sm_100, at 255 registers.
    "linear/gamma_forward-*16-4097": 8,
}
WORKERS = 2


def cases(module, architecture):
    return importlib.import_module(f"lrp_fast.kernels.{module}").compile_cases(divmod(architecture, 10))


def jobs():
    return [(m, a, i) for m in MODULES for a in ARCHITECTURES for i in range(len(cases(m, a)))]


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
        case = cases(module, architecture)[index]
        try:
            result = case[0], *resources(case, architecture)
        except Exception as error:
            result = f"{case[0]}: {error!r}"
        print(json.dumps([module, architecture, result]), flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("module", MODULES)
def test_compiles_within_the_device_s_limits(module, architecture, compiled):
    results = compiled[module, architecture]
    failures = [result for result in results if isinstance(result, str)]
    assert len(results) == len(cases(module, architecture))
    for name, shared, registers, stack in (result for result in results if not isinstance(result, str)):
        line = f"sm_{architecture} {name}: shared {shared}, registers {registers}, stack {stack}"
        print(line)  # pytest -rP shows the table
        allowed = next((most for pattern, most in STACK.items() if fnmatch(f"{module}/{name}", pattern)), 0)
        if shared > SHARED[architecture] or stack > allowed:
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
