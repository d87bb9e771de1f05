"""Global and shared memory (PTX ISA 5.1, "State Spaces"): what is there, and whether an access is allowed.

Addresses become rows: an access of ``size`` bytes is aligned to its size, so it is one row of the memory seen as a
matrix with rows of that many bytes. What would stop a kernel on a device stops it here: `Fault`.

``team`` is who executes the instruction (machine.py), ``lanes`` which of its threads access memory; None is all.
"""

import ctypes

import numpy as np

from tests.ptx import races

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
BASE = 0x7F0000000000  # where global memory begins
LARGEST = 400_000_000  # bytes of all tensors together
PAGE = 4096  # at least, between tensors, so that an index one too far meets nothing


class Fault(Exception):
    """The kernel cannot go on."""


class _Memory:
    """``bytes``, ``report``, and what `Global` and `Shared` know: which rows may be accessed, and who did."""

    def matrix(self, size, word):
        """Rows of ``size`` bytes, as elements of ``word`` bytes."""
        return self.bytes.view(WORDS[word]).reshape(-1, size // word)

    def load(self, team, addresses, size, count, lanes=None):
        """``count`` arrays; zeros where nothing is loaded."""
        lanes = team.chosen(lanes)
        word = size // count
        if lanes is False:
            return [np.zeros(team.count, WORDS[word])] * count
        rows = self.rows(team, team.of(addresses, lanes), size, "load", lanes)
        self.note_read(team, rows, size, lanes)
        found = self.matrix(size, word).take(rows, 0)
        if lanes is not None:
            whole = np.zeros((team.count, count), WORDS[word])
            whole[lanes] = found
            found = whole
        return [found[:, 0]] if count == 1 else list(np.ascontiguousarray(found.T))

    def store(self, team, addresses, values, size, lanes=None):
        lanes = team.chosen(lanes)
        if lanes is False:
            return
        rows = self.rows(team, team.of(addresses, lanes), size, "store", lanes)
        shared_rows = self.note_write(team, rows, size, lanes)
        matrix = self.matrix(size, size // len(values))
        values = [team.of(value, lanes) for value in values]
        for column, value in enumerate(values):
            matrix[rows, column] = value
        if shared_rows and any((matrix[rows, column] != value).any() for column, value in enumerate(values)):
            self.report(f"RACE: lanes write different values to one {self.name} address in one instruction")


class Shared(_Memory):
    """Of a batch of programs, one after the other, ``stride`` bytes apart."""

    name = "shared"

    def __init__(self, machine, size):
        self.report, self.size = machine.report, size
        self.bytes = np.full(machine.shared_stride * machine.programs, 0xFF, np.uint8)
        self.races = races.Shared(machine)

    def rows(self, team, addresses, size, what, lanes):
        at = addresses.astype(np.int64)
        if (at & (size - 1)).any():
            raise Fault(f"misaligned shared {what} of {size} bytes")
        if at.min() < 0 or at.max() + size > self.size:
            raise Fault(f"shared {what} outside the program's {self.size} bytes")
        return (at + team.of(team.base, lanes)) // size

    def note_read(self, team, rows, size, lanes):
        self.races.read(rows, size, team.of(team.threads, lanes))

    def note_write(self, team, rows, size, lanes):
        return self.races.write(rows, size, team.of(team.threads, lanes))


class Global(_Memory):
    """The tensors of a launch, copied into one array with space between them."""

    name = "global"

    def __init__(self, tensors, kernel, report):
        self.report = report
        self.groups = _groups(tensors)
        end = PAGE
        for group in self.groups:
            group.at = end + group.first % 256  # as aligned as it really is
            end = -(-(group.at + len(group.bytes) + PAGE) // PAGE) * PAGE
        if end > LARGEST:
            raise MemoryError(f"{end} bytes of tensors")
        self.bytes = np.full(end, 0xA5, np.uint8)
        for group in self.groups:
            self.bytes[group.at : group.at + len(group.bytes)] = group.bytes
        self.starts = [group.at for group in self.groups]
        self.races = races.Global(kernel, end, report)

    def address(self, tensor):
        if not tensor.numel():
            return BASE  # of nothing
        group = next(g for g in self.groups if any(t is tensor for t in g.tensors))
        return BASE + group.at + tensor.data_ptr() - group.first

    def copy_back(self):
        for group in self.groups:
            group.bytes[:] = self.bytes[group.at : group.at + len(group.bytes)]

    def rows(self, team, addresses, size, what, lanes):
        at = addresses.astype(np.int64) - BASE
        first, end = int(at.min()), int(at.max()) + size
        if first < 0 or end > len(self.bytes):
            raise Fault(f"global {what} far from every tensor")
        if (at & (size - 1)).any():
            raise Fault(f"misaligned global {what} of {size} bytes")
        near = self.groups[max(np.searchsorted(self.starts, first, "right") - 1, 0)] if self.groups else None
        if near is None or near.before is not None or first < near.at or end > near.at + len(near.bytes):
            self._check(at, size, what)
        return at // size

    def _check(self, at, size, what):
        """Every access is inside of elements of a tensor, whichever."""
        allowed = np.zeros(at.shape, bool)
        for group in self.groups:
            here = at - group.at
            inside = (here >= 0) & (here + size <= len(group.bytes))
            if group.before is not None:
                here = here[inside]
                inside[inside] = group.before[here + size] - group.before[here] == size
            allowed |= inside
        if not allowed.all():
            self.report(f"global {what} of {size} bytes outside every tensor")

    def note_read(self, team, rows, size, lanes):
        self.races.read(rows, size, team.of(team.program, lanes), team.machine.instruction)

    def note_write(self, team, rows, size, lanes):
        self.races.write(rows, size, team.of(team.program, lanes), team.machine.instruction)
        return True

    def add(self, team, addresses, value, size, lanes=None):
        """atom.add and red.add of integers, one lane after the other; gives what was there before."""
        lanes = team.chosen(lanes)
        before = np.zeros(team.count, WORDS[size])
        if lanes is not False:
            rows = self.rows(team, team.of(addresses, lanes), size, "atomic operation", lanes)
            self.races.add(rows, size, team.of(team.program, lanes), team.machine.instruction)
            value = team.of(value, lanes)
            column = self.matrix(size, size)[:, 0]
            order = np.argsort(rows, kind="stable")
            sums = np.cumsum(value[order], dtype=value.dtype) - value[order]
            first = np.searchsorted(rows[order], rows[order])  # of the lanes with the same place
            before[np.arange(team.count)[slice(None) if lanes is None else lanes][order]] = (
                column[rows[order]] + sums - sums[first]
            )
            np.add.at(column, rows, value)
        return (before,)


class _Group:
    """Tensors that share memory: the ``bytes`` from the ``first`` one's address to the last one's end."""

    def __init__(self, tensors, first, end):
        self.tensors, self.first = tensors, first
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * (end - first)).from_address(first))
        inside = np.zeros(end - first, bool)
        for tensor in tensors:
            size, start = tensor.element_size(), tensor.data_ptr() - first
            strides = [stride * size for stride in tensor.stride()]
            view = np.ndarray((*tensor.shape, size), bool, inside, start, (*strides, 1))
            view[...] = True
        # How many of the bytes before each belong to elements, where not all do.
        self.before = None if inside.all() else np.concatenate([[0], np.cumsum(inside)])


def _groups(tensors):
    groups = []
    for tensor in sorted((t for t in tensors if t.numel()), key=lambda t: t.data_ptr()):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        first, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
        if groups and first < groups[-1][2]:
            groups[-1][0].append(tensor)
            groups[-1][2] = max(end, groups[-1][2])
        else:
            groups.append([[tensor], first, end])
    return [_Group(*group) for group in groups]
