"""What may happen at the same time (PTX ISA 8, "Memory Consistency Model"), judged by happens-before.

Threads of a program are ordered by bar.sync, lanes of a warp also by bar.warp.sync. Programs are not ordered at all.
Both are kept by pieces of memory as large as the narrowest access of the kernel: no access is a part of a piece.
"""

import math

import numpy as np

# What is known of a piece of shared memory.
WRITTEN = 1
COMING = 2  # a cp.async writes it, and nobody has waited for that
GENERIC = 4  # written by the generic proxy, no fence.proxy.async since
MULTIPLIED = 8  # an unfinished wgmma reads it
COPIED = 16  # what it holds came by cp.async, whose writes are the generic proxy's too

# An access is a stamp, (epoch << BITS) + thread of the program; epochs begin at 1, so that 0 is none. The highest
# number of a thread means several.
BITS = 11
SEVERAL = (1 << BITS) - 1


class Shared:
    """Of the shared memory of a batch of programs: who wrote and who read each piece last, and in which epoch, that
    is after how many of its program's barriers. An access of an earlier epoch is ordered before the present one.
    """

    def __init__(self, machine):
        self.machine, self.report = machine, machine.report
        self.piece = machine.kernel.narrowest["shared"]
        pieces = machine.shared_stride * machine.programs // self.piece
        self.state = np.zeros(pieces, np.uint8)
        self.writer, self.reader = np.zeros(pieces, np.int32), np.zeros(pieces, np.int32)
        self.unfinished = np.zeros(pieces, np.int16)  # wgmma that read it
        # Lanes of one warp are told apart by how many bar.warp.sync they had passed, where a kernel has any.
        self.by_warp = any(i.opcode.startswith("bar.warp.sync") for i in machine.kernel.instructions)
        self.written_at, self.read_at = (np.zeros(pieces if self.by_warp else 0, np.int32) for _ in range(2))
        # Of reads in this epoch: the warp they are of, -1 for several.
        self.read_warp = np.zeros(pieces if self.by_warp else 0, np.int32)

    def by_access(self, array, size):
        """``array`` with one row for each aligned access of ``size`` bytes."""
        return array.reshape(-1, size // self.piece)

    def read(self, rows, size, threads):
        """``rows``: which aligned stretch of ``size`` bytes each of the ``threads`` reads."""
        state = self.by_access(self.state, size).take(rows, 0)
        if ((state & (WRITTEN | COMING)) != WRITTEN).any():
            if not (state & WRITTEN).all():
                self.report("shared memory read that nothing has written")
            if (state & COMING).any():
                self.report("shared read of what cp.async has not yet delivered")
        mine = self.machine.stamp[threads][:, None]
        if self.unordered(self.writer, self.written_at, rows, size, threads, mine):
            self.report("RACE: shared read after a write with no barrier between")
        self.note_read(rows, size, threads, mine)

    def note_read(self, rows, size, threads, mine):
        readers = self.by_access(self.reader, size)
        old = readers.take(rows, 0)
        if self.by_warp:
            self._note_warps(rows, size, threads, old, mine)
        readers[rows] = mine
        more = readers.take(rows, 0) != mine  # in this instruction
        if old.max() >= mine.min() & ~SEVERAL:
            more |= ((old ^ mine) >> BITS == 0) & (old != mine)  # earlier in this epoch
        if more.any():
            which, column = np.nonzero(more)
            readers[rows[which], column] = mine[which, 0] | SEVERAL

    def _note_warps(self, rows, size, threads, old, mine):
        warps = (threads % self.machine.kernel.threads // 32).astype(np.int32)[:, None]
        of, at = self.by_access(self.read_warp, size), self.by_access(self.read_at, size)
        other = ((old ^ mine) >> BITS == 0) & (of.take(rows, 0) != warps)
        of[rows] = warps
        other |= of.take(rows, 0) != warps
        if other.any():
            which, column = np.nonzero(other)
            of[rows[which], column] = -1
        at[rows] = self.machine.warp_epoch[threads // 32][:, None]

    def unordered(self, last, at, rows, size, threads, mine):
        """Whether the last access of any row is in this epoch, by another thread, and not ordered by the warp."""
        old = self.by_access(last, size).take(rows, 0)
        if old.max() < mine.min() & ~SEVERAL:
            return False
        bad = ((old ^ mine) >> BITS == 0) & (old != mine)
        if not bad.any() or not self.by_warp:
            return bad.any()
        warps = threads[:, None] % self.machine.kernel.threads // 32
        of = self.by_access(self.read_warp, size).take(rows, 0) if last is self.reader else (old & SEVERAL) // 32
        earlier = self.by_access(at, size).take(rows, 0) < self.machine.warp_epoch[threads // 32][:, None]
        return (bad & ~((of == warps) & earlier)).any()

    def write(self, rows, size, threads, becomes=WRITTEN | GENERIC):
        """As `read`; gives whether several threads write to one place."""
        states, writers = self.by_access(self.state, size), self.by_access(self.writer, size)
        state = states.take(rows, 0)
        if (state & (COMING | MULTIPLIED)).any():
            if (state & COMING).any():
                self.report("shared write of what cp.async has not yet delivered")
            if (state & MULTIPLIED).any():
                self.report("RACE: shared write of what an unfinished wgmma reads")
        mine = self.machine.stamp[threads][:, None]
        if self.unordered(self.writer, self.written_at, rows, size, threads, mine):
            self.report("RACE: two shared writes with no barrier between")
        if self.unordered(self.reader, self.read_at, rows, size, threads, mine):
            self.report("RACE: shared write after a read with no barrier between")
        states[rows] = becomes
        writers[rows] = mine
        if self.by_warp:
            self.by_access(self.written_at, size)[rows] = self.machine.warp_epoch[threads // 32][:, None]
        return (writers.take(rows, 0) != mine).any()

    def deliver(self, rows, size, threads):
        """What cp.async has fetched is written now, by the ``threads`` that wait for it."""
        self.by_access(self.state, size)[rows] = WRITTEN | GENERIC | COPIED
        self.by_access(self.writer, size)[rows] = self.machine.stamp[threads][:, None]
        if self.by_warp:
            self.by_access(self.written_at, size)[rows] = self.machine.warp_epoch[threads // 32][:, None]

    def multiply(self, pieces, epochs):
        """A wgmma begins to read: ``pieces`` has a row for each program, which is in its ``epochs``."""
        state = self.state[pieces]
        wrong = (state & (WRITTEN | COMING | GENERIC)) != WRITTEN
        if wrong.any():
            if not (state & WRITTEN).all():
                self.report("wgmma reads shared memory that nothing has written")
            if (state & COMING).any():
                self.report("wgmma reads what cp.async has not yet delivered")
            if (state & (GENERIC | COPIED) == GENERIC).any():
                self.report("wgmma reads generic writes without fence.proxy.async")
            if (state & (GENERIC | COPIED) == GENERIC | COPIED).any():
                self.report("wgmma reads what cp.async wrote without fence.proxy.async")
        if (self.writer[pieces] >> BITS == epochs[:, None]).any():
            self.report("RACE: wgmma reads what was written with no barrier since")
        self.unfinished[pieces] += 1
        self.state[pieces] |= MULTIPLIED

    def multiplied(self, pieces, epochs):
        """That wgmma is over. All of its threads count as readers, now."""
        self.unfinished[pieces] -= 1
        self.state[pieces[self.unfinished[pieces] == 0]] &= ~np.uint8(MULTIPLIED)
        self.reader[pieces] = epochs[:, None] << BITS | SEVERAL
        if self.by_warp:
            self.read_warp[pieces] = -1

    def fence_proxy(self, threads):
        """fence.proxy.async by ``threads``: what they wrote is now visible, and to a whole warpgroup (any counts
        for all) what a barrier has ordered before.
        """
        machine = self.machine
        found = np.flatnonzero(self.state & GENERIC)
        programs = found // (machine.shared_stride // self.piece)
        active = np.zeros((machine.programs, machine.kernel.threads), bool)
        active.reshape(-1)[threads] = True
        before = (self.writer[found] >> BITS) < machine.epoch[programs]
        groups = active.reshape(machine.programs, -1, math.gcd(128, machine.kernel.threads)).all(2).any(1)
        fenced = active[programs, self.writer[found] & SEVERAL] | before & groups[programs]
        self.state[found[fenced]] &= ~np.uint8(GENERIC)


class Global:
    """Of the global memory of a launch: which program wrote each piece, and what others read or write of that.

    Reads are written down and judged at the end, or when they have become many: most tensors are never written to.
    """

    NOBODY, MANY = -1, -2
    ENOUGH = 1 << 22
    PAGE = 12  # bits of the addresses in one

    def __init__(self, kernel, size, report):
        self.piece = kernel.narrowest["global"]
        self.report = report
        self.writer = np.full(-(-size // 16) * 16 // self.piece, self.NOBODY, np.int32)
        self.adder = None  # as writer, of atomic operations
        self.reader = None  # of the reads that were judged already
        self.reads, self.count = [], 0
        self.pages = np.zeros((size >> self.PAGE) + 1, bool)  # written to at all

    def by_access(self, array, size):
        return array.reshape(-1, size // self.piece)

    def read(self, rows, size, programs, instruction):
        self.reads.append((rows, size, programs, instruction))
        self.count += len(rows)
        if self.count > self.ENOUGH:
            self.settle()
            if self.reader is None:
                self.reader = np.full_like(self.writer, self.NOBODY)
            for rows, size, programs, _ in self.reads:
                self._note(self.reader, rows, size, programs)
            self.reads, self.count = [], 0

    def write(self, rows, size, programs, instruction):
        if self._others(self.writer, rows, size, programs):
            self.report("global write where another program writes", instruction)
        if self.adder is not None and self._others(self.adder, rows, size, programs):
            self.report("global write where another program has an atomic operation", instruction)
        if self.reader is not None and self._others(self.reader, rows, size, programs):
            self.report("global write of what another program reads", instruction)
        if self._note(self.writer, rows, size, programs):
            self.report("global write where another program writes", instruction)
        self.pages[rows * size >> self.PAGE] = True

    def add(self, rows, size, programs, instruction):
        """Atomic operations do not disturb each other."""
        if self._others(self.writer, rows, size, programs):
            self.report("atomic operation where another program writes", instruction)
        if self.adder is None:
            self.adder = np.full_like(self.writer, self.NOBODY)
        self._note(self.adder, rows, size, programs)
        self.pages[rows * size >> self.PAGE] = True

    def settle(self):
        for rows, size, programs, instruction in self.reads:
            some = self.pages[rows * size >> self.PAGE]
            if some.any():
                for of in (self.writer, self.adder):
                    if of is not None and self._others(of, rows[some], size, programs[some]):
                        self.report("global read of what another program writes", instruction)
                        break

    def _others(self, of, rows, size, programs):
        found = self.by_access(of, size).take(rows, 0)
        return ((found != self.NOBODY) & (found != programs[:, None])).any()

    def _note(self, to, rows, size, programs):
        """Gives whether several programs meet, in this one instruction."""
        to = self.by_access(to, size)
        old = to.take(rows, 0)
        to[rows] = programs[:, None]
        meet = to.take(rows, 0) != programs[:, None]
        several = meet | (old != self.NOBODY) & (old != programs[:, None])
        if several.any():
            which, column = np.nonzero(several)
            to[rows[which], column] = self.MANY
        return meet.any()
