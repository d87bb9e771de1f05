"""How the kernels of this folder see tensors, are launched, and are listed for the compile gate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# (name, jit_fn, signature, constexprs, num_warps, num_stages), as `triton.compiler.ASTSource` takes them. In the
# signature, what follows a type and ":" is what Triton finds out at launch, "D" that the value is divisible by 16.
Case = tuple[str, object, dict[str, str], dict[str, object], int, int]

# Elements of a pointwise program of 4 warps: 8 a thread, one 16-byte load of each 2-byte operand.
_ELEMENTS = 1024

# (jit_fn, programs, arguments, constexprs, num_warps, num_stages) -> None
Launch = Callable[[object, int, tuple, dict[str, object], int, int], object]

# What `instead` was given: of the caller's context alone, other threads launch.
_instead: ContextVar[tuple[Launch, tuple[int, int]] | None] = ContextVar("instead", default=None)


@triton.jit
def tile(rows, features, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr):
    """The tile of a (rows, features) matrix that this program owns: row numbers [BLOCK_R, 1], feature numbers
    [1, BLOCK_F] (int64, because rows * features passes 2^31) and the mask of what exists [BLOCK_R, BLOCK_F].
    """
    i_p = tl.program_id(0)
    i_n = tl.cdiv(features, BLOCK_F)
    o_r = (i_p // i_n).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    o_f = (i_p % i_n).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]
    return o_r, o_f, (o_r < rows) & (o_f < features)


def pointwise(kernel, matrices: list[Tensor | None], *scalars: float, **constexprs) -> None:
    """``kernel(*matrices, *scalars, rows, features, *strides, BLOCK_R, BLOCK_F, **constexprs)``, a program a tile.

    The first matrix gives (rows, features). ``strides`` are each matrix's row and feature stride, 0 and 0 for None.
    """
    rows, features = matrices[0].shape
    if not matrices[0].numel():
        return
    block_f = min(triton.next_power_of_2(features), _ELEMENTS)
    block_r = _ELEMENTS // block_f
    grid = triton.cdiv(rows, block_r) * triton.cdiv(features, block_f)
    arguments = (*matrices, *scalars, rows, features, *strides(*matrices))
    launch(kernel, grid, *arguments, BLOCK_R=block_r, BLOCK_F=block_f, **constexprs)


def launch(kernel, programs: int, *arguments, num_warps: int = 4, num_stages: int = 1, **constexprs) -> None:
    """Runs ``kernel`` on the device of its first argument; inside `instead` it is handed over."""
    if (instead := _instead.get()) is not None:
        instead[0](kernel, programs, arguments, constexprs, num_warps, num_stages)
    elif programs:
        with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, wherever the tensors are
            kernel[(programs,)](*arguments, **constexprs, **options(kernel, num_warps, num_stages))


def unfused(kernel):
    """A decorator for a kernel in which no sum may swallow a product that feeds it, unrounded.

    Where lanes of a warp add up squares, one each, x x + y with x x unrounded is not what the lane of y makes of the
    two: lanes that should hold one number would differ by an ulp, and which of them is stored be the hardware's choice.
    """
    kernel.fused = False
    return kernel


def options(kernel, num_warps: int, num_stages: int) -> dict[str, object]:
    """What a launch is compiled with. Triton 3.10 will no longer fuse products and sums unless it is told to."""
    fused = getattr(kernel, "fused", True)
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": fused}


def capability(x: Tensor) -> tuple[int, int]:
    """The compute capability that tile tables are read for."""
    if (instead := _instead.get()) is not None:
        return instead[1]
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (8, 0)


def record(calls: dict[str, Callable[[], object]], on: tuple[int, int]) -> list[Case]:
    """The kernels that ``calls``, by name, launch on a device of capability ``on``. Their tensors are on "meta"."""
    cases = []
    for name, call in calls.items():
        with taken_down(on) as launches:
            call()
        for kernel, arguments, constexprs, num_warps, num_stages in launches:
            cases.append((name, kernel, *specialised(kernel, arguments, constexprs, on), num_warps, num_stages))
    return cases


@contextmanager
def instead(run: Launch, on: tuple[int, int]) -> Iterator[None]:
    """Launches in this context are calls of ``run``, as on a device of capability ``on``."""
    token = _instead.set((run, on))
    try:
        yield
    finally:
        _instead.reset(token)


@contextmanager
def taken_down(on: tuple[int, int]) -> Iterator[list]:
    """Launches in this context go into the list that it gives, (kernel, arguments, constexprs, num_warps, num_stages),
    as on a device of capability ``on``, and do not happen.
    """
    launches: list = []
    with instead(lambda kernel, programs, *rest: launches.append((kernel, *rest)), on):
        yield launches


def specialised(kernel, arguments, constexprs, on):
    """The signature and the constants that Triton's own launcher makes of a launch."""
    # Imported here, because no launch may depend on Triton's insides.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 10 * on[0] + on[1], 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    values, kinds, _ = bind(*arguments, **constexprs)
    signature, constants = {}, {}
    for (name, value), (kind, found) in zip(values.items(), kinds, strict=True):
        signature[name] = kind if kind == "constexpr" or not found else f"{kind}:{found}"
        if kind == "constexpr":
            constants[name] = value
    return signature, constants


def strides(*matrices: Tensor | None) -> list[int]:
    return [stride for x in matrices for stride in ((0, 0) if x is None else x.stride())]


def as_rows(x: Tensor) -> Tensor:
    """(..., D) as (rows, D): a view wherever one row stride can express it, otherwise a copy."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])
