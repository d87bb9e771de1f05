"""Where tensors wait between the forward and the backward pass: on their device, in host memory, or in a file."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

# Host memory is taken in blocks beyond the size from which every allocator maps memory by itself: what waits here does
# not split the heap that the layers work in, and goes back to the system as soon as it has been used.
_BLOCK = 64 << 20
_WORTH_TIDYING = 16 << 20  # bytes of a layer at work; for less it is not worth a look at the heap
_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Stored(NamedTuple):
    """A tensor that waits. Only `Store` looks inside."""

    data: Tensor | int  # on its device or in host memory; in the file, where it begins
    like: Tensor  # without memory: shape, strides, dtype
    device: torch.device


class Sent(NamedTuple):
    """What is on its way to host memory, see `send`."""

    host: Tensor
    event: torch.cuda.Event | None  # after which it is there

    def arrived(self) -> Tensor:
        """Waits for it."""
        if self.event is not None:
            self.event.synchronize()
        return self.host


def send(x: Tensor) -> Sent:
    """``x`` on its way to host memory, from CUDA without waiting: a wait at every layer leaves the device without work
    until the next layer's has been told."""
    if not x.is_cuda:
        return Sent(x.cpu(), None)
    host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    host.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(x.device))
    return Sent(host, event)


class Store:
    """Keeps tensors in the tier that it is told and gives them back, each once.

    Tiers: "device" holds on to the tensor itself; "host" copies it into host memory, pinned where it comes from CUDA,
    on a stream of its own; "file" writes it to a file without a name, which the system removes when the process ends.
    """

    def __init__(self, offload_dir: str | os.PathLike | None = None):
        self._offload_dir = offload_dir
        self._file = None
        self._free: dict[bool, Tensor] = {}  # what is left of the last block, by whether it is pinned
        self._pinned: list[Tensor] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._fetched: dict[int, Tensor] = {}

    def open_file(self) -> None:
        """Has to be called before the first tensor goes to "file"."""
        self._file = tempfile.TemporaryFile(dir=self._offload_dir)  # noqa: SIM115

    def put(self, x: Tensor, tier: str) -> Stored:
        x = _dense(x.detach())
        like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        if tier == "device":
            return Stored(x, like, x.device)
        if tier == "host":
            room = self._room(x)
            with self._beside(x.device):
                room.copy_(x, non_blocking=True)
            if x.is_cuda:
                x.record_stream(self._streams[x.device])
            return Stored(room, like, x.device)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(_bytes(x.cpu()))
        return Stored(start, like, x.device)

    def fetch(self, stored: Stored) -> None:
        """Start to bring a tensor from host memory back to its CUDA device; `take` waits for it."""
        if isinstance(stored.data, Tensor) and stored.data.device != stored.device:
            with self._beside(stored.device):
                self._fetched[id(stored)] = stored.data.to(stored.device, non_blocking=True)

    def take(self, stored: Stored) -> Tensor:
        """The tensor, on the device from which it came."""
        if isinstance(stored.data, int):
            like = stored.like
            x = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
            self._file.seek(stored.data)
            if self._file.readinto(_bytes(x)) != x.nbytes:
                raise OSError("the file of stored activations is cut short")
            return x.to(stored.device)
        if stored.data.device == stored.device:
            return stored.data
        if id(stored) not in self._fetched:
            self.fetch(stored)
        x = self._fetched.pop(id(stored))
        here = torch.cuda.current_stream(stored.device)
        here.wait_stream(self._streams[stored.device])
        x.record_stream(here)
        return x

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._pinned:
            for device in self._streams:
                torch.cuda.synchronize(device)
        for block in self._pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(block.data_ptr()))
        self._pinned.clear()

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """The stream of a CUDA device on which copies run beside the work; for a CPU nothing."""
        if device.type != "cuda":
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield

    def _room(self, x: Tensor) -> Tensor:
        """Host memory for a tensor like ``x``."""
        size = -(-x.nbytes // 64) * 64
        free = self._free.get(x.is_cuda)
        if free is None or len(free) < size:
            free = torch.empty(max(_BLOCK, size), dtype=torch.uint8, device="cpu")
            if x.is_cuda:  # by hand: PyTorch's own pinned memory is rounded up to a power of two, and never given back
                torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(free.data_ptr(), len(free), 0))
                self._pinned.append(free)
        self._free[x.is_cuda] = free[size:]
        return free[: x.nbytes].view(x.dtype).as_strided(x.shape, x.stride())


class Heap:
    """Sees to it that a pass stays within what it may take (glibc; elsewhere it does nothing).

    Tensors below 32 MiB come from the C library's heap, and most of the holes that they leave there are a few bytes
    short of the next tensor of the same size: a pass over many layers grows to twice the memory that it uses. What lies
    free can be given back to the system, but that takes time, and so does touching it again. It is done where there is
    no room to grow.

    Args:
        room: bytes that the process may grow by, free heap of before included; None for no limit.
        work: of these, what a layer takes while it is at work.
    """

    def __init__(self, room: int | None, work: int):
        self._trim = None
        if sys.platform == "linux" and room is not None and work > _WORTH_TIDYING:
            library = ctypes.CDLL(None)
            self._trim = getattr(library, "malloc_trim", None)
            taken = _anonymous()
            # An earlier pass may have left free more than this one may take: that is used first.
            self._most = max(taken, taken - _free_heap(library) + room) - work

    def tidy(self) -> None:
        """Between layers, and between a layer's forward and backward pass."""
        if self._trim is not None and _anonymous() > self._most:
            self._trim(0)


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO]


def _free_heap(library: ctypes.CDLL) -> int:
    """Bytes that the C library's heap holds free, given back already or not; 0 where it does not tell."""
    ask = getattr(library, "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _Mallinfo
    return ask().fordblks


def _anonymous() -> int:
    """Bytes of memory that the process has, without those of files."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _dense(x: Tensor) -> Tensor:
    """``x`` without gaps between its elements, in whatever order its dimensions lie in memory."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return x if x.permute(order).is_contiguous() else x.contiguous()


def _bytes(x: Tensor) -> memoryview:
    return memoryview(x.as_strided((x.numel(),), (1,)).view(torch.uint8).numpy())
