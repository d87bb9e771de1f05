"""The compile gate: what `compile_cases` of every module of kernels/ lists becomes machine code for every architecture,
within the memory of its devices, shared and for tensors, and without a stack. No GPU is needed.

A module's ``compile_cases(on)`` lists what it launches on a device of compute capability ``on``.
"""

import functools
import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from lrp_fast.kernels import common, norm
from lrp_fast.kernels.resources import SHARED, TENSOR_MEMORY, Resources, resources
from lrp_fast.kernels.resources import compiled as compiled_for
from lrp_fast.kernels.tiles import TABLE
from lrp_fast.tuning import launches

KERNELS = Path(__file__).parents[2] / "kernels"
MODULES = sorted(
    path.relative_to(KERNELS).with_suffix("").parts[0]  # of a folder, its own __init__ has it
    for path in KERNELS.glob("**/*.py")
    if re.search(r"^def compile_cases\(", path.read_text(), re.MULTILINE)
)
SLOW = ("attention", "edges", "linear")  # to compile, ten seconds and more for each architecture
ARCHITECTURES = (80, 89, 90, 100)
# The oldest and the newest Triton compile the slow ones for these alone: there releases have differed in what spills.
AT_THE_ENDS = (90, 100)
# sm_86 and sm_120 have the shared memory of sm_89, and its tiles: of theirs, what sm_89 has otherwise, and a selection.
SELECTED = {architecture: ("attention/128-bfloat16-*", "linear/*-bfloat16-4097", "*/*-silu-bfloat16*",
                           "norm/*-bfloat16-4096*", "relevance/*") for architecture in (86, 120)}  # fmt: skip
# Bytes of stack that a thread may have, where not 0, over all architectures and versions of Triton: by "module/case",
# the first pattern that fits.
STACK = {
    # Features far apart: the address of every element is a sum of its own, in 64 bits.
    "attention/*-far-features-forward_kernel": 928,
    "attention/*-far-features-dkv_kernel": 1032,
    "attention/*-far-features-dq_kernel": 424,
    "attention/*-far-features-prepare_kernel": 8,
    # Full float32 goes without tensor cores, and holds both operands in registers.
    "attention/*-float32-*-forward_kernel": 176,
    "attention/*-float32-*-dq_kernel": 216,
    "attention/*-forward_kernel": 48,
    # With Triton 3.9 on sm_90, for three stages that hide the copy; 40 with 3.7 and 48 with 3.6.
    "attention/256-*-dkv_kernel": 264,
    # 128 queries by 64 keys took an H200 3/4 of the time, with Triton 3.6: so much with 3.9 on sm_90, 40 with 3.7.
    "attention/64-bfloat16-plain-dkv_kernel": 152,
    "attention/64-bfloat16-kept-dkv_kernel": 152,
    # With Triton 3.6 on sm_100; the lists of what is kept are walked beside the sums.
    "attention/64-bfloat16-kept-all-flags-dkv_kernel": 120,
    "attention/*-dkv_kernel": 112,
    "attention/*-dq_kernel": 48,
    # Rows of W that begin at any address: each element is loaded by itself.
    "linear/gamma_forward-*-odd": 320,
    "linear/gamma_backward-*-odd": 552,
    # Behind the loop, where the sums become z and t: with Triton 3.6 and 3.7 on sm_90, none with 3.9.
    "linear/gamma_forward-*": 88,
    # The lists are kept beside the sums. Triton 3.9 spills most, on sm_90 without parts; 3.6 and 3.7 spill 8 there.
    "edges/*-plain-strongest_kernel": 336,
    # The same at head_dim 128, where heads that keep nothing are passed over.
    "edges/128-*-kept-strongest_kernel": 280,
    "edges/128-*-kept-tile_kernel": 272,
    "edges/*-cp-strongest_kernel": 264,
    "edges/*-strongest_kernel": 208,
    "edges/*": 112,
    # Rows so wide that 1,024 threads hold 32 elements each: they were refused otherwise.
    # Most with Triton 3.9 on sm_100.
    "norm/layer_norm_backward-*-32768-*": 376,
    # One number of a thread, on sm_89, since no product is fused into a sum.
    "norm/layer_norm_forward-*-8192-most": 8,
}
WORKERS = 2


@functools.cache
def cases(module, architecture):
    listed = importlib.import_module(f"lrp_fast.kernels.{module}").compile_cases(divmod(architecture, 10))
    if architecture in ARCHITECTURES:
        return listed
    known = [case[1:] for case in cases(module, 89)]
    return [case for case in listed if case[1:] not in known or fits(f"{module}/{case[0]}", SELECTED[architecture])]


def fits(name, patterns):
    return any(fnmatch(name, pattern) for pattern in patterns)


def jobs(asked):
    """Every case of each (module, architecture), shuffled: each process gets as much of the slow ones."""
    listed = [(m, a, i) for m, a in asked for i in range(len(cases(m, a)))]
    random.Random(0).shuffle(listed)
    return listed


@pytest.fixture(scope="module")
def compiled(request, tmp_path_factory):
    """(module, architecture) -> its cases' resources, or what went wrong, made by two processes that run this file: of
    all that the tests ask for which were selected."""
    asked = [
        (one.callspec.params["module"], one.callspec.params["architecture"])
        for one in request.session.items
        if "compiled" in getattr(one, "fixturenames", ())
    ]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(part), json.dumps(asked)],
                         stdout=subprocess.PIPE, text=True, env=environment)
        for part in range(WORKERS)
    ]  # fmt: skip
    with ThreadPoolExecutor(WORKERS) as readers:  # each pipe has to be emptied while both fill
        outputs = readers.map(lambda worker: worker.communicate()[0].splitlines(), workers)
    found = defaultdict(list)
    for module, architecture, result in (json.loads(line) for output in outputs for line in output):
        found[module, architecture].append(result)
    assert all(worker.returncode == 0 for worker in workers), "a compiling process died"
    return found


def work(part, asked):
    for module, architecture, index in jobs(asked)[part::WORKERS]:
        case = cases(module, architecture)[index]
        try:
            result = case[0], *resources(case, architecture)
        except Exception as error:
            result = f"{case[0]}: {error!r}"
        print(json.dumps([module, architecture, result]), flush=True)


def marks(module, architecture):
    """None for what `make test` compiles: every quick module for one architecture, and the quickest for each."""
    if module in SLOW:
        return [pytest.mark.slow] if architecture in AT_THE_ENDS else [pytest.mark.slow, pytest.mark.again]
    return [] if architecture == 90 or module == "relevance" else [pytest.mark.again]


@pytest.mark.parametrize(
    ("module", "architecture"),
    [pytest.param(m, a, marks=marks(m, a)) for m in MODULES for a in (*ARCHITECTURES, *SELECTED)],
)
def test_compiles_within_the_device_s_limits(module, architecture, compiled):
    results = compiled[module, architecture]
    failures = [result for result in results if isinstance(result, str)]
    assert len(results) == len(cases(module, architecture))
    for name, *found in (result for result in results if not isinstance(result, str)):
        found = Resources(*found)
        line = f"sm_{architecture} {name}: {', '.join(f'{what} {number}' for what, number in found._asdict().items())}"
        print(line)  # pytest -rP shows the table
        stack = next((most for pattern, most in STACK.items() if fnmatch(f"{module}/{name}", pattern)), 0)
        limits = Resources(SHARED[architecture], 255, stack, TENSOR_MEMORY)
        if any(number > most for number, most in zip(found, limits, strict=True)):
            failures.append(line)
    assert not failures, "\n".join(failures)


@triton.jit(do_not_specialize=["length"])
def launched_kernel(x, y, none, length, size, far, stride, scale, FLAG: tl.constexpr):
    pass


def test_a_case_is_what_a_launch_compiles():
    x = torch.empty(16, 33, dtype=torch.bfloat16, device="meta")
    arguments = (x, x[:, 1:], None, 32, 32, 2**31, *x.stride()[1:], 0.5)
    calls = {"a call": lambda: common.launch(launched_kernel, 1, *arguments, num_warps=8, FLAG=True)}
    ((name, kernel, signature, constants, num_warps, num_stages),) = common.record(calls, (9, 0))
    assert (name, kernel, num_warps, num_stages) == ("a call", launched_kernel, 8, 1)
    assert constants == {"none": None, "stride": 1, "FLAG": True}
    assert signature == dict.fromkeys(constants, "constexpr") | {
        "x": "*bf16:D", "y": "*bf16:", "length": "i32", "size": "i32:D", "far": "i64:D", "scale": "fp32",
    }  # fmt: skip


def test_what_adds_up_squares_rounds_every_product():
    """Otherwise lanes that hold one number differ, see `common.unfused`: here, each has one element of a row."""
    x = torch.empty(63, 111, dtype=torch.bfloat16, device="meta")
    rows, given = torch.empty(63, device="meta"), {"frozen": False}
    calls = {
        "forward": lambda: norm.layer_norm_forward(x, x[0], x[0], 1e-6),
        "backward": lambda: norm.rms_norm_backward(x, x[0], rows, x, **given),
    }
    for case in common.record(calls, (9, 0)):
        assert "fma.rn.f32" not in compiled_for(case, 90).asm["ptx"]


def test_every_kernel_is_listed():
    """A jit kernel that is launched but not in `compile_cases` would escape the gate."""
    listed = {fn.__name__ for module in MODULES for fn in (case[1] for case in cases(module, 90))}
    written = set()
    for path in KERNELS.glob("**/*.py"):
        written |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    assert written and written <= listed


if __name__ == "__main__":
    work(int(sys.argv[1]), json.loads(sys.argv[2]))


class _Device:
    """What a launch asks a driver before it compiles: there is an sm_90."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


def test_a_launch_finds_what_was_compiled_for_its_account(monkeypatch):
    """In Triton's cache: otherwise `lrp-fast tune` would compile everything twice."""
    row = "gamma_backward, 2 bytes, few rows"
    kernel, prepare = launches.work(row)
    (case,) = (case for case in common.record({row: lambda: prepare("meta")(TABLE)}, (9, 0)) if case[1] is kernel)
    with common.taken_down((9, 0)) as taken:
        prepare("meta")(TABLE)
    (launch,) = (one for one in taken if one[0] is kernel)
    _, arguments, constants, num_warps, num_stages = launch
    monkeypatch.setattr(triton.runtime.driver, "_active", _Device())
    options = common.options(kernel, num_warps, num_stages)
    launched = kernel.warmup(*arguments, grid=(1,), **constants, **options)
    assert compiled_for(case, 90).hash == launched.hash
