"""cp.async and its groups (PTX ISA 9.7.9.25, "Data Movement and Conversion: Asynchronous copy"). Data arrive when they
are waited for, the latest that the device may take; until then there is something else in their place.
"""

import numpy as np

from tests.ptx.races import COMING, WRITTEN


def copy(team, to, source, size, given, lanes):
    """``size`` bytes of global memory to shared memory, or zeros where ``given`` is 0 (None: nowhere)."""
    lanes = team.chosen(lanes)
    if lanes is False:
        return
    machine = team.machine
    rows = machine.shared.rows(team, team.of(to, lanes), size, "cp.async", lanes)
    given = np.full(len(rows), size) if given is None else team.of(given, lanes)
    if ((given != 0) & (given != size)).any():
        raise NotImplementedError("cp.async of some of its bytes")
    fetched = given != 0
    data = None
    if fetched.any():
        readers = fetched
        if lanes is not None:
            readers = lanes.copy()
            readers[lanes] = fetched
        readers = team.chosen(readers)
        found = machine.memory.rows(team, team.of(source, readers), size, "cp.async", readers)
        machine.memory.note_read(team, found, size, readers)
        data = machine.memory.matrix(size, 4).take(found, 0)
    if not fetched.all():
        whole = np.zeros((len(rows), size // 4), np.uint32)
        whole[fetched] = 0 if data is None else data
        data = whole
    threads = team.of(team.threads, lanes)
    machine.shared.races.write(rows, size, threads, becomes=WRITTEN | COMING)
    machine.shared.matrix(size, 4)[rows] = 0xEEEEEEEE
    machine.copies.append((threads, machine.copy_groups[threads], rows, data, size))


def commit(team, lanes):
    team.machine.copy_groups[team.of(team.threads, team.some(lanes))] += 1


def wait(team, most, lanes):
    """All but the last ``most`` groups of each thread arrive."""
    machine = team.machine
    waits = np.zeros(machine.threads, bool)
    waits[team.of(team.threads, team.some(lanes))] = True
    finished = machine.copy_groups - most
    left = []
    for entry in machine.copies:
        threads, groups, *_ = entry
        arrived = waits[threads] & (groups < finished[threads])
        if arrived.all():
            _arrive(machine, *entry)
            continue
        if arrived.any():
            _arrive(machine, *(x[arrived] for x in entry[:-1]), entry[-1])
        left.append((*(x[~arrived] for x in entry[:-1]), entry[-1]))
    machine.copies = left


def wait_all(team, lanes):
    commit(team, lanes)
    wait(team, 0, lanes)


def _arrive(machine, threads, groups, rows, data, size):
    matrix = machine.shared.matrix(size, 4)
    matrix[rows] = data
    if (matrix.take(rows, 0) != data).any():
        machine.report("RACE: cp.async of different bytes to one shared address")
    machine.shared.races.deliver(rows, size, threads)
