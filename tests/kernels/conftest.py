"""Kernel tests run on a GPU (with `-m gpu`), or without one in Triton's interpreter, in a process of their own:
``TRITON_INTERPRET=1 pytest tests/kernels``, or as the code that they compile to for a device, executed on the CPU:
``pytest tests/kernels --ptx 90``. The interpreter is made to notice what a GPU would not report; what the executor
reports (a race, an access out of bounds, a wait or fence that is missing) fails the test that caused it.
"""

import dataclasses
import math
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import triton

from lrp_fast.kernels import common
from lrp_fast.reference import rounding
from tests.kernels import ways
from tests.kernels.ways import INTERPRETED

EXECUTOR = pytest.StashKey()
# What --ptx has nothing to do with.
NOT_EXECUTED = {
    "test_compile.py": "--ptx compiles what is launched",
    "test_interpreter.py": "TRITON_INTERPRET=1 is not set",
    "test_operations.py": "the doctor's calls: of those, the kernels' own tests have more",
    "test_tune.py": "nothing is timed there",
    "test_vendor.py": "it goes to and fro between our kernels and PyTorch's, which need a GPU",
    "test_race.py": "the executor takes programs in one order, and reports races itself",
}


def pytest_ignore_collect(collection_path):
    return True if collection_path.name == "test_shipped.py" and not ways.EXECUTED else None


def pytest_configure(config):
    target = config.option.ptx
    if target is None:
        return
    if INTERPRETED:
        raise pytest.UsageError("--ptx executes compiled code: leave out TRITON_INTERPRET")
    from tests.kernels.executor import Executor

    ways.choose(target)
    config.stash[EXECUTOR] = Executor(target)


def pytest_report_header(config):
    how = "interpreted" if INTERPRETED else "compiled"
    if ways.EXECUTED:
        how += f" for sm_{config.option.ptx}, whose PTX is executed on the CPU"
    return f"triton: {triton.__version__}, {how}"


def pytest_terminal_summary(terminalreporter, config):
    if ways.EXECUTED:
        executor = config.stash[EXECUTOR]
        terminalreporter.write_line(
            f"executed on the CPU, as PTX for sm_{executor.target} by Triton {triton.__version__}: "
            f"{executor.launches} launches of {len(executor.programs)} programs"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A report fails its test, or stands beside what failed."""
    executor = item.config.stash.get(EXECUTOR, None)
    if executor is None:
        return (yield)
    executor.reports.clear()
    record = item.funcargs.get("record")
    case = nullcontext() if record is None else record.case(item)
    try:
        with case, common.instead(executor, executor.on):
            result = yield
    except BaseException:
        item.add_report_section("call", "reports of the executor", _lines(executor.reports))
        raise
    if executor.reports:
        pytest.fail(_lines(executor.reports), pytrace=False)
    return result


@pytest.fixture(scope="session")
def executor(request):
    found = request.config.stash.get(EXECUTOR, None)
    return pytest.skip("without --ptx nothing is executed") if found is None else found


def _lines(reports, most=12):
    lines = [f"{report} ({count} times)" for report, count in reports.most_common()]
    return "\n".join([*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])])


def pytest_collection_modifyitems(config, items):
    config.stash[ways.COLLECTED] = [item.name for item in items]
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        name = item.path.name
        if ways.ON_GPU and name != "test_compile.py":
            item.add_marker(pytest.mark.gpu)
        if why := _nothing_runs(name):
            item.add_marker(pytest.mark.skip(reason=why))


def _nothing_runs(name):
    """Why there is nothing in a file for the way that kernels run; empty where there is."""
    if ways.EXECUTED:
        return NOT_EXECUTED.get(name)
    if name == "test_compile.py":
        return "TRITON_INTERPRET is set: nothing is compiled" if INTERPRETED else ""
    if INTERPRETED:
        return ""
    if name == "test_interpreter.py":
        return "TRITON_INTERPRET=1 is not set"
    return "" if torch.cuda.is_available() else "TRITON_INTERPRET=1 is not set, and there is no CUDA device"


class _CheckedMemory:
    """The interpreter's memory, closed outside the tensors that the running kernel was given."""

    def __init__(self, memory):
        self._memory = memory
        self.spans = []  # first address and the one after the last, of each tensor

    def __getattr__(self, name):
        return getattr(self._memory, name)

    def load(self, pointers, mask, other, dtype):
        self._check("load", pointers, mask, np.dtype(dtype).itemsize)
        return self._memory.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self._check("store", pointers, mask, value.dtype.itemsize)
        return self._memory.store(pointers, value, mask)

    def atomic_rmw(self, op, pointers, value, mask, sem):
        self._check("atomic", pointers, mask, value.dtype.itemsize)
        return self._memory.atomic_rmw(op, pointers, value, mask, sem)

    def atomic_cas(self, pointers, expected, value, sem):
        self._check("atomic", pointers, np.ones_like(pointers, dtype=bool), value.dtype.itemsize)
        return self._memory.atomic_cas(pointers, expected, value, sem)

    def _check(self, what, pointers, mask, size):
        used = pointers[np.broadcast_to(mask, pointers.shape)].astype(np.int64)
        inside = np.zeros(used.shape, dtype=bool)
        for first, end in self.spans:
            inside |= (used >= first) & (used + size <= end)
        if not inside.all():
            raise IndexError(f"{what} out of bounds: {(~inside).sum()} of {used.size} addresses")


def _tensors(arguments):
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(getattr(argument, "base", None), torch.Tensor):  # a tensor descriptor
            yield argument.base


def _matmul(a, b, dtype=None):
    """numpy's, but each element is the same sum wherever it stands, from k = 0 on in float64, and is rounded once.

    numpy leaves products of floats to a BLAS, which has kernels for each processor and sums the edges of a matrix in
    another order than its middle. einsum has none: its innermost loop goes along rows of b, these being contiguous.
    """
    dtype = np.result_type(a, b) if dtype is None else dtype
    if dtype.kind != "f":
        return np.matmul(a, b, dtype=dtype)
    a, b = (np.ascontiguousarray(x, dtype=np.float64) for x in (a, b))
    return np.einsum("...ik,...kj->...ij", a, b, optimize=False).astype(dtype)


@pytest.fixture(scope="session", autouse=True)
def strict_interpreter():
    """Integer overflow and accesses out of bounds raise InterpreterError; a bfloat16 tensor TypeError, because the
    interpreter's arithmetic on them is wrong. What ``tl.dot`` gives is the same on every processor.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    def on_launch(executor, arguments, keywords):
        prepared.clear()
        memory.spans = []
        for x in _tensors([*arguments, *keywords.values()]):
            if x.dtype == torch.bfloat16:
                raise TypeError("Triton's interpreter computes bfloat16 wrongly: a kernel was given such a tensor")
            if x.numel():
                last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
                memory.spans.append((x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()))
        return arguments, keywords  # as they are: everything is on the CPU already

    # Triton prepares its language anew at each call of a helper, which takes as long as many a helper does: once a
    # launch and module is enough.
    prepare, prepared = interpreter._patch_lang, set()

    def prepare_once(function):
        if function.__module__ not in prepared:
            prepared.add(function.__module__)
            return prepare(function)

    memory = _CheckedMemory(interpreter._interpreter)
    patch = pytest.MonkeyPatch()
    patch.setattr(interpreter, "_interpreter", memory)
    patch.setattr(interpreter, "_patch_lang", prepare_once)
    numpy = types.ModuleType("numpy")
    vars(numpy).update(vars(np), matmul=_matmul)
    patch.setattr(interpreter, "np", numpy)
    # Triton guards integer arithmetic with device_assert, which does nothing unless debug is on.
    options = dataclasses.replace(interpreter.interpreter_builder.options, debug=True)
    patch.setattr(interpreter.interpreter_builder, "options", options)
    patch.setattr(interpreter.GridExecutor, "_init_args_hst", on_launch)
    patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    with np.errstate(over="ignore"):  # exp, on its way to a sigmoid of 0
        yield
    patch.undo()


# PyTorch lists, once, the functions that a device as a context serves: not those that stand in for them below.
with torch.device("meta"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """What ``torch.empty`` and its kin return holds NaN (integers: the least): nothing unwritten goes unseen."""

    def poisoned(make):
        def call(*args, **kwargs):
            x = make(*args, **kwargs)
            if x.dtype.is_floating_point:
                x.fill_(float("nan"))
            elif x.dtype != torch.bool and not x.dtype.is_complex:
                x.fill_(torch.iinfo(x.dtype).min)
            return x

        return call

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


def pytest_generate_tests(metafunc):
    """A test of ``dtype`` runs for its own, its module's DTYPES, or those of the way that kernels run."""
    said = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "dtype" in metafunc.fixturenames and "dtype" not in said:
        dtypes = getattr(metafunc.module, "DTYPES", ways.DTYPES)
        metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(scope="session")
def device():
    return ways.DEVICE


@pytest.fixture
def draw(device):
    """``draw(*shape, dtype, layout="contiguous", scale=1)``: normal numbers, every seventh zero.

    layout: "contiguous", "gaps" (every second feature of a wider tensor), or "transposed" (features far apart).
    """
    generator = torch.Generator().manual_seed(0)

    def make(*shape, dtype, layout="contiguous", scale=1.0):
        x = torch.randn(shape, generator=generator) * scale
        x.view(-1)[::7] = 0
        x = x.to(device, dtype)
        if layout == "gaps":
            wide = torch.full((*shape[:-1], 2 * shape[-1]), float("nan"), dtype=dtype, device=device)
            wide[..., ::2] = x
            x = wide[..., ::2]
        elif layout == "transposed":
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        else:
            assert layout == "contiguous"
        return x

    return make


@pytest.fixture
def far_apart(device):
    """``far_apart(x)``: the three rows of x, 2^30 elements apart. On a CPU, only the pages in use take memory."""
    if ways.EXECUTED:
        pytest.skip("takes up to 17 GB, which the executor would copy")
    if device != "cpu" and torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("takes up to 17 GB, and the device, which other tests may share, has less than 60 free")

    def spread(x):
        assert x.shape[0] == 3
        stride = 2**30
        storage = torch.UntypedStorage((2 * stride + x.shape[1]) * x.element_size(), device=device)
        wide = torch.tensor([], dtype=x.dtype, device=device).set_(storage, 0, x.shape, (stride, 1))
        return wide.copy_(x)

    return spread


@pytest.fixture
def same():
    """``same(found, expected, terms)``: of two calls that differ in strides or buffers, but compute the same.

    Bit for bit in the interpreter. A compiler makes code of its own for either, which may sum in another order: both
    are then within the rounding error of a sum of ``terms`` numbers.
    """

    def check(found, expected, terms):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if INTERPRETED:
            assert torch.equal(found, expected)
        else:
            allowed = math.sqrt(terms) * torch.finfo(found.dtype).eps * expected.double().abs().max()
            assert (found.double() - expected.double()).abs().max() <= allowed

    return check


@pytest.fixture
def judge(within_rounding):
    """``judge(found, definition, tensors, terms)``: by the precision oracle, ``definition`` in float64 being the truth
    and in the working dtype the plain form; None among the tensors is passed on. ``terms`` are those of a float32 sum.
    """

    def check(found, definition, tensors, terms):
        truth = definition(*(None if x is None else x.double() for x in tensors))
        within_rounding(found, definition(*tensors), truth, rounding.summed(found.dtype, terms))

    return check
