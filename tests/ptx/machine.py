"""A batch of programs in lock step: registers, control flow and barriers.

Threads that diverge meet again because the first basic block, in the order of the text, that any thread is at runs
next, for all that are at it. That is one of the orders in which a device may run them.
"""

import numpy as np

from tests.ptx import memory, races
from tests.ptx.translation import LANES, TEAM, WHOLE

NOT_A_NUMBER = np.uint64(0x7FC0DEAD7FC0DEAD)  # what registers hold before they are written


class Machine:
    def __init__(self, program, global_memory, reports, numbers, grid, shared, arguments):
        self.program, self.kernel = program, program.kernel
        self.memory, self.reports = global_memory, reports
        self.programs = len(numbers)
        self.threads = self.kernel.threads * self.programs
        self.numbers = np.array(numbers, np.uint32)  # of the programs in the grid
        self.grid, self.ntid = np.uint32(grid), np.uint32(self.kernel.threads)
        self.arguments = arguments
        self.instruction = None  # the one that runs
        empty = {"r": np.uint32, "rd": np.uint64, "rs": np.uint16}
        for bank, kind in empty.items():
            initial = np.full(self.threads, NOT_A_NUMBER.astype(kind))
            setattr(self, bank, [initial] * self.kernel.registers.get(bank, 0))
        self.p = [np.zeros(self.threads, bool)] * self.kernel.registers.get("p", 0)
        # Where threads are.
        self.at = np.zeros(self.threads, np.int64)
        self.waiting, self.gone = np.zeros(self.threads, bool), np.zeros(self.threads, bool)
        # How many barriers a program, and a warp, has passed, from 1. An epoch and a thread, for races.py.
        self.epoch = np.ones(self.programs, np.int32)
        self.warp_epoch = np.ones(self.threads // 32, np.int32)
        self.stamp = self._stamp()
        # What is under way: of cp.async and of wgmma, and how many groups each thread and warpgroup has committed.
        self.copies, self.copy_groups = [], np.zeros(self.threads, np.int64)
        self.unfinished, self.wgmma_groups = [], np.zeros(-(-self.threads // 128), np.int64)
        self.tiles = program.tiles
        self.shared_stride = -(-max(shared, 16) // 16) * 16
        self.shared = memory.Shared(self, shared)
        self.chain = None, None
        self.everyone = Team(self, None)
        self.teams = {}

    def report(self, kind, instruction=None):
        found = instruction or self.instruction
        self.reports[f"{kind}: {found.text}, {found.place}"] += 1

    def run(self):
        while not self.gone.all():
            ready = ~(self.waiting | self.gone)
            if not ready.any():
                self._release()
                continue
            number = int(self.at[ready].min())
            here = ready & (self.at == number)
            if here.all():
                self.program.block(number, WHOLE)(self, self.everyone, None)
                continue
            team = self._team(here.reshape(-1, 32).any(1))
            inside = here[team.threads]
            if inside.all():
                self.program.block(number, TEAM)(self, team, None)
            else:
                self.program.block(number, LANES)(self, team, inside)
        if self.copies:
            self.reports["cp.async that nothing waits for"] += 1

    def _team(self, warps):
        key = warps.tobytes()
        if key not in self.teams:
            self.teams[key] = Team(self, warps)
        return self.teams[key]

    def _release(self):
        """Every thread waits, or has left: programs pass their barriers."""
        passes = self.waiting.reshape(self.programs, -1).any(1)
        self.epoch[passes] += 1
        if self.epoch.max() >> 31 - races.BITS:
            raise NotImplementedError("so many barriers")
        self.stamp = self._stamp()
        self.waiting[:] = False

    def _stamp(self):
        return (self.epoch[:, None] << races.BITS | np.arange(self.kernel.threads, dtype=np.int32)).reshape(-1)


class Team:
    """Whole warps that run a block together. ``index``: their threads, None for all. Functions of the other files take
    arrays with an element for each of these threads, or numpy scalars, and ``lanes``, which of them take part.
    """

    def __init__(self, machine, warps):
        self.machine = machine
        everyone = np.arange(machine.threads)
        self.index = None if warps is None else everyone.reshape(-1, 32)[warps].reshape(-1)
        self.threads = everyone if warps is None else self.index
        self.count = len(self.threads)
        if warps is not None and self.threads[-1] - self.threads[0] + 1 == self.count:
            self.index = slice(int(self.threads[0]), int(self.threads[-1]) + 1)  # costs nothing to read
        programs = self.threads // machine.kernel.threads
        self.tid = (self.threads % machine.kernel.threads).astype(np.uint32)
        self.lane = self.threads % 32
        self.ctaid = machine.numbers[programs]
        self.program = self.ctaid.astype(np.int32)
        self.base = programs * machine.shared_stride  # of the program's shared memory
        # Warpgroups are four warps of which the first has a number divisible by four.
        firsts = self.threads[::128]
        self.has_whole_groups = self.count % 128 == 0 and bool(
            (self.threads.reshape(-1, 128) == (firsts // 128 * 128)[:, None] + np.arange(128)).all()
        ) and machine.kernel.threads % 128 == 0  # fmt: skip

    # Arrays.

    def wide(self, value):
        return value if value.ndim else np.full(self.count, value)

    def of(self, value, lanes):
        value = self.wide(value)
        return value if lanes is None else value[lanes]

    def stack(self, values):
        """A matrix with a row for each value."""
        rows, whole = self.machine.chain
        if rows is not None and len(rows) == len(values) and all(map(lambda a, b: a is b, rows, values)):
            return whole
        result = np.empty((len(values), self.count), values[0].dtype)
        for row, value in zip(result, values, strict=True):
            row[...] = value
        return result

    def rows(self, matrix):
        """The other way round; `stack` knows what it came from, as results are often added to by the next."""
        rows = list(matrix)
        self.machine.chain = rows, matrix
        return rows

    # Lanes.

    def chosen(self, lanes):
        """None for all, False for none."""
        lanes = self.some(lanes)
        return lanes if lanes is None or lanes.any() else False

    def some(self, lanes):
        """None for all."""
        if lanes is None or lanes.all():
            return None
        return self.wide(lanes)

    def collective(self, lanes):
        """Of warps that take part at all, every lane has to."""
        if lanes is not None:
            taking = self.wide(lanes).reshape(-1, 32)
            if (taking.any(1) != taking.all(1)).any():
                self.machine.report("warp-collective instruction with lanes missing")

    # Control.

    def _put(self, array, value, m):
        if m is not None:
            array[self.threads[m]] = value
        elif self.index is None:
            array[:] = value
        else:
            array[self.index] = value

    def go(self, number, m):
        self._put(self.machine.at, number, m)

    def branch(self, condition, number, other, m):
        there = np.where(condition, number, other)
        self._put(self.machine.at, there if m is None or not there.ndim else there[m], m)

    def leave(self, m):
        self._put(self.machine.gone, True, m)

    def barrier(self, number, m):
        self.go(number, m)
        self._put(self.machine.waiting, True, m)

    def warp_barrier(self, m):
        self.collective(m)
        warps = self.threads[::32] // 32
        self.machine.warp_epoch[warps if m is None else warps[m.reshape(-1, 32).all(1)]] += 1
