"""wgmma, "Asynchronous Warpgroup Level Matrix Instructions" (PTX ISA 9.7.15): 64 rows by four warps, operands of bf16
or f16 in shared memory where descriptors say, or A in registers.

Results are computed at once; that nobody looks at them too early is checked from the text (accumulators.py). What is
read in shared memory stays in use until wgmma.wait_group says otherwise.
"""

import re

import numpy as np

from tests.ptx import matrix
from tests.ptx.memory import Fault
from tests.ptx.parsing import elements

FORM = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(bf16|f16)\.\2")


def _translate(w, i):
    if i.predicate is not None:
        raise NotImplementedError(i.text)
    if i.opcode == "wgmma.fence.sync.aligned":  # orders registers, of which each has one value here
        return
    if i.opcode == "wgmma.commit_group.sync.aligned":
        return w.call(f"G.commit(t, {w.lanes})")
    if i.opcode == "wgmma.wait_group.sync.aligned":
        return w.call(f"G.wait(t, {int(i.operands[0], 0)}, {w.lanes})")
    form = FORM.fullmatch(i.opcode)
    if not form:
        raise NotImplementedError(i.text)
    to, a, b, accumulate, *scales = i.operands
    results = elements(to)
    signs, transposed = scales[:2], [int(x) for x in scales[2:]]
    in_registers = a.startswith("{")
    if signs != ["1", "1"] or len(transposed) != (1 if in_registers else 2) or 2 * len(results) != int(form[1]):
        raise NotImplementedError(i.text)
    first = w.tuple(a, "u4") if in_registers else w.read(a, "u8")
    call = (
        f"G.multiply(t, {form[2]!r}, {w.tuple(to, 'f4')}, {first}, {w.read(b, 'u8')}, {w.predicate(accumulate)}, "
        f"{transposed if not in_registers else [0, *transposed]}, {w.lanes})"
    )
    w.call(call, [(x, "f4") for x in results])


def tile(descriptor, rows, transposed):
    """Addresses of the 16-byte stretches of an operand with 16 columns (along k): (rows, 2), or where it is transposed,
    that is contiguous along its rows, (16, rows / 8).

    "Matrix Descriptor Format" and "Strides": cores of 8 rows of 16 bytes; with a swizzle, an atom of 8 rows of 32, 64
    or 128 bytes whose 16-byte columns are exchanged by the bits of the address above them.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise NotImplementedError("wgmma descriptor with a base offset")
    swizzle = {0: 16, 1: 128, 2: 64, 3: 32}[descriptor >> 62 & 3]
    if not transposed:
        row, column = np.arange(rows)[:, None], np.arange(2)[None, :]
        place = row % 8 * swizzle + row // 8 * stride + column * (leading if swizzle == 16 else 16)
    else:
        k, unit = np.arange(16)[:, None], np.arange(rows // 8)[None, :]
        if swizzle == 16:
            place = k % 8 * 16 + k // 8 * leading + unit * stride
        else:
            units = swizzle // 16
            place = k % 8 * swizzle + k // 8 * stride + unit % units * 16 + unit // units * leading
    place = place + start
    return place ^ (place >> 7 & swizzle // 16 - 1) << 4


def _operand(team, kind, descriptors, rows, transposed):
    """(groups, rows, 16) or, transposed, (groups, 16, rows) in float32; notes that shared memory is being read."""
    memory = team.machine.shared
    descriptors = team.wide(descriptors).reshape(-1, 128)
    if (descriptors != descriptors[:, :1]).any():
        raise Fault("wgmma descriptor that differs within a warpgroup")
    keys = [(int(x), rows, bool(transposed)) for x in descriptors[:, 0]]
    tiles = team.machine.tiles
    for key in {*keys} - {*tiles}:
        tiles[key] = tile(*key)
        if tiles[key].max() + 16 > memory.size:
            raise Fault(f"wgmma operand outside the program's {memory.size} bytes")
    places = (np.stack([tiles[key] for key in keys]) + team.base[::128, None, None]) // 16
    _note(team, places)
    words = memory.matrix(16, 2).take(places, 0).reshape(len(keys), *((16, rows) if transposed else (rows, 16)))
    if kind == "bf16":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return words.view(np.float16).astype(np.float32)


def _note(team, places):
    """One warpgroup of each program after the other, because those of one program may read the same."""
    machine = team.machine
    races = machine.shared.races
    per_unit = 16 // races.piece
    groups = team.threads[::128] // 128
    slots = groups % (machine.kernel.threads // 128)
    for slot in np.unique(slots):
        chosen = slots == slot
        pieces = places[chosen].reshape(chosen.sum(), -1)
        pieces = (pieces[:, :, None] * per_unit + np.arange(per_unit)).reshape(len(pieces), -1)
        programs = groups[chosen] // (machine.kernel.threads // 128)
        races.multiply(pieces, machine.epoch[programs])
        machine.unfinished.append((groups[chosen], machine.wgmma_groups[groups[chosen]], pieces))


def multiply(team, kind, results, a, b, accumulate, transposed, lanes):
    if lanes is not None and not lanes.all() or not team.has_whole_groups:
        raise Fault("wgmma with threads missing")
    if isinstance(a, tuple):
        x = matrix.rows_of_a(team, kind, 1, a).reshape(-1, 64, 16)
    else:
        x = _operand(team, kind, a, 64, transposed[0])
        x = x.swapaxes(1, 2) if transposed[0] else x
    y = _operand(team, kind, b, 2 * len(results), transposed[1])
    y = y if transposed[1] else y.swapaxes(1, 2)
    # Register r of lane l in warp w: row 16 w + l / 4 + 8 (r / 2 % 2), column 8 (r / 4) + 2 (l % 4) + r % 2.
    product = np.matmul(x, y).reshape(len(x), 4, 2, 8, len(results) // 4, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5)
    product = product.reshape(len(results), team.count)
    if accumulate.any():
        before = team.stack(results)
        product = product + (before if accumulate.all() else np.where(accumulate, before, np.float32(0)))
    return team.rows(product)


def commit(team, lanes):
    team.machine.wgmma_groups[_whole(team, lanes)] += 1


def wait(team, most, lanes):
    machine = team.machine
    waits = np.zeros(len(machine.wgmma_groups), bool)
    waits[_whole(team, lanes)] = True
    left = []
    for groups, numbers, pieces in machine.unfinished:
        over = waits[groups] & (numbers < machine.wgmma_groups[groups] - most)
        if over.any():
            programs = groups[over] // (machine.kernel.threads // 128)
            machine.shared.races.multiplied(pieces[over], machine.epoch[programs])
        if not over.all():
            left.append((groups[~over], numbers[~over], pieces[~over]))
    machine.unfinished = left


def _whole(team, lanes):
    if lanes is not None and not lanes.all() or not team.has_whole_groups:
        raise Fault("wgmma with threads missing")
    return team.threads[::128] // 128


OPERATIONS = {"wgmma": _translate}
