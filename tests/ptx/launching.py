"""Compiled kernels without a GPU: ``launch(Program(ptx), shared, programs, arguments)``."""

import struct
from collections import Counter

import numpy as np
import torch

from tests.ptx import accumulators, memory, parsing
from tests.ptx.machine import Machine
from tests.ptx.translation import WHOLE, Writer

# In lock step, unless a launch says otherwise: enough to make up for what an instruction costs in Python.
THREADS = 4096


class Program:
    """A kernel's text, translated. Unknown instructions raise NotImplementedError here."""

    def __init__(self, ptx):
        self.kernel = parsing.parse(ptx)
        if self.kernel.threads % 32:
            raise NotImplementedError("a program of other than whole warps")
        lengths = np.cumsum([0, *map(len, self.kernel.blocks)])
        self._first = lengths.tolist()  # instruction of each block
        self._functions = {}
        self.tiles = {}  # of wgmma operands in shared memory, by descriptor
        self.reports = accumulators.early(self.kernel, lambda kind, i: f"{kind}: {i.text}, {i.place}")
        for number in range(len(self.kernel.blocks)):
            self.block(number, WHOLE)

    def block(self, number, form):
        if (number, form) not in self._functions:
            self._functions[number, form] = Writer(self.kernel, number, form, self._first[number]).function()
        return self._functions[number, form]


class Reports(Counter):
    """Sentences that name a kind of fault, an instruction and its source line, and how often it was seen. ``notes`` are
    about the run alone.
    """

    def __init__(self, found=()):
        super().__init__(found)
        self.notes = Counter()


def launch(program, shared, programs, arguments, *, batch=None):
    """Runs ``programs`` programs, each with ``shared`` bytes of shared memory, ``batch`` of them in lock step.

    ``arguments`` are those of the PTX in their order: tensors on the CPU, which results are written back to, ints and
    floats. What Triton adds at the end (scratch memory) may be left out.
    """
    reports = Reports(program.reports)
    kernel = program.kernel
    machine = None

    def report(kind, instruction=None):
        machine.report(kind, instruction)

    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    space = memory.Global(tensors, kernel, report)
    missing = len(kernel.parameters) - len(arguments)
    if not 0 <= missing <= 2:
        raise TypeError(f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}")
    values = [_bits(x, kind, space) for x, kind in zip([*arguments, *[0] * missing], kernel.parameters, strict=True)]
    shared = max(shared, kernel.static_shared)
    batch = batch or max(1, THREADS // kernel.threads)
    with np.errstate(all="ignore"):
        for first in range(0, programs, batch):
            numbers = range(first, min(first + batch, programs))
            machine = Machine(program, space, reports, numbers, programs, shared, values)
            try:
                machine.run()
            except memory.Fault as fault:  # a device would stop here as well
                machine.report(str(fault))
                break
        if machine is not None:
            space.races.settle()
    space.copy_back()
    return reports


def _bits(argument, kind, space):
    """A parameter's value as an unsigned numpy scalar of 64 bits."""
    if isinstance(argument, torch.Tensor):
        return np.uint64(space.address(argument))
    if kind == "f32":
        return np.uint64(struct.unpack("<I", struct.pack("<f", argument))[0])
    return np.uint64(int(argument) & 0xFFFFFFFFFFFFFFFF)
