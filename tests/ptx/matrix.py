"""mma.sync, ldmatrix and stmatrix (PTX ISA 9.7.14, "Warp Level Matrix Multiply-Accumulate Instructions").

Products are summed in float32 in whatever order the BLAS has; the device has its own.
"""

import re

import numpy as np

from tests.ptx.parsing import elements

MMA = re.compile(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.\1\.f32")
MATRIX = re.compile(r"(?:ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16")
UPPER = np.uint32(0xFFFF0000)


def _mma(w, i):
    """Delayed, because many at once are cheaper. They lie in a row, and most add to what they read."""
    kind = MMA.fullmatch(i.opcode)
    if not kind or i.predicate is not None:
        raise NotImplementedError(i.text)
    to, a, b, c = (tuple(elements(x)) for x in i.operands)
    results = {x for _, _, earlier, *_ in w.delayed if earlier != to for x in earlier}
    sources = {x for _, _, _, *earlier in w.delayed for operand in earlier[:2] for x in operand}
    adds = to == c
    if not adds or results & {*to, *a, *b} or {*to} & {*sources, *a, *b}:
        w.flush()
    w.delayed.append((w.next_instruction, kind[1], to, a, b, c))
    if not adds:
        w.flush()


def write_mma(w, delayed):
    """One multiplication for all results whose rows of A are the same, along k and across results."""
    sums = {}
    for _, kind, to, a, b, c in delayed:
        sums.setdefault((kind, to, c), []).append((a, b))
    products = {}
    for (kind, to, c), terms in sums.items():
        products.setdefault((kind, tuple(a for a, _ in terms)), []).append((to, c, [b for _, b in terms]))

    def variables(names, kind):
        return "(" + ", ".join(w.read(x, kind) for x in names) + ",)"

    for (kind, rows), columns in products.items():
        a = variables([x for row in rows for x in row], "u4")
        b = variables([x for *_, column in columns for pieces in column for x in pieces], "u4")
        c = variables([x for _, c, _ in columns for x in c], "f4")
        w.call(
            f"X.multiply(t, {kind!r}, {len(rows)}, {a}, {b}, {c}, {w.lanes})",
            [(x, "f4") for to, *_ in columns for x in to],
        )


def to_float(kind, packed, axes, shape):
    """Pairs of halves, as float32 in the order ``axes`` of ``packed`` with the two of a pair in a new axis of which
    ``axes`` says the place by None.
    """
    at = axes.index(None)
    moved = packed.transpose([x for x in axes if x is not None])
    low, high = ((slice(None),) * at + (n,) for n in (0, 1))
    result = np.empty((*moved.shape[:at], 2, *moved.shape[at:]), np.float32)
    if kind == "bf16":
        bits = result.view(np.uint32)
        np.left_shift(moved, np.uint32(16), out=bits[low])
        np.bitwise_and(moved, UPPER, out=bits[high])
    else:
        result[low] = (moved & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16)
        result[high] = (moved >> np.uint32(16)).astype(np.uint16).view(np.float16)
    return result.reshape(shape)


def rows_of_a(team, kind, pieces, a):
    """Fragments of A, 4 registers of each of ``pieces`` along k, as (warps, 16, 16 * pieces).

    Register r of lane l holds row l / 4 + 8 (r % 2), columns 2 (l % 4) + 8 (r / 2) and the next.
    """
    packed = team.stack(a).reshape(pieces, 2, 2, -1, 8, 4)  # piece, column / 8, row / 8, warp, row, pair
    return to_float(kind, packed, [3, 2, 4, 0, 1, 5, None], (-1, 16, 16 * pieces))


def multiply(team, kind, pieces, a, b, c, lanes):
    """c + a b, for as many 8 columns as ``c`` has 4 registers."""
    team.collective(lanes)
    x = rows_of_a(team, kind, pieces, a)
    # Register r of lane l holds rows 2 (l % 4) + 8 r and the next of column l / 4.
    packed = team.stack(b).reshape(len(c) // 4, pieces, 2, -1, 8, 4)  # column / 8, piece, row / 8, warp, column, pair
    y = to_float(kind, packed, [3, 1, 2, 5, None, 0, 4], (len(x), 16 * pieces, 2 * len(c)))
    # Register r of lane l holds row l / 4 + 8 (r / 2), column 2 (l % 4) + r % 2.
    product = np.matmul(x, y).reshape(len(x), 2, 8, len(c) // 4, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    return team.rows(product.reshape(len(c), team.count) + team.stack(c))


def _load_matrix(w, i):
    form = MATRIX.fullmatch(i.opcode)
    results = elements(i.operands[0])
    if not form or len(results) != int(form[1]):
        raise NotImplementedError(i.text)
    call = f"X.load(t, {w.address(i.operands[1])}, {len(results)}, {bool(form[2])}, {w.lanes})"
    w.call(call, [(x, "u4") for x in results])


def _store_matrix(w, i):
    form = MATRIX.fullmatch(i.opcode)
    given = elements(i.operands[1])
    if not form or len(given) != int(form[1]):
        raise NotImplementedError(i.text)
    w.call(f"X.store(t, {w.address(i.operands[0])}, {w.tuple(i.operands[1], 'u4')}, {bool(form[2])}, {w.lanes})")


def _addressing(team, count, lanes):
    """The lanes whose addresses count, 8 for each matrix; None: all of all warps."""
    team.collective(lanes)
    if count < 4:
        first = team.lane < 8 * count
        lanes = first if lanes is None else first & lanes
    return team.chosen(lanes)


def load(team, addresses, count, transposed, lanes):
    """ldmatrix: lane 8 i + r gives the address of row r of matrix i; lane l gets columns 2 (l % 4) and the next of
    row l / 4, or with .trans of the transposed matrix.
    """
    lanes = _addressing(team, count, lanes)
    memory = team.machine.shared
    rows = memory.rows(team, team.of(addresses, lanes), 16, "ldmatrix", lanes)
    memory.note_read(team, rows, 16, lanes)
    data = memory.matrix(16, 2).take(rows, 0)
    if lanes is not None:
        whole = np.zeros((team.count, 8), np.uint16)
        whole[lanes] = data
        data = whole.reshape(-1, 32, 8)[:, : 8 * count]
    data = data.reshape(-1, count, 8, 8)
    if transposed:
        data = np.ascontiguousarray(data.swapaxes(2, 3))
    return np.ascontiguousarray(data.view(np.uint32).swapaxes(0, 1)).reshape(count, team.count)


def store(team, addresses, values, transposed, lanes):
    """stmatrix, the other way round."""
    count = len(values)
    lanes = _addressing(team, count, lanes)
    memory = team.machine.shared
    rows = memory.rows(team, team.of(addresses, lanes), 16, "stmatrix", lanes)
    several = memory.note_write(team, rows, 16, lanes)
    data = np.ascontiguousarray(team.stack(values).reshape(count, -1, 8, 4).swapaxes(0, 1)).view(np.uint16)
    if transposed:
        data = data.swapaxes(2, 3)
    data = data.reshape(-1, 8 * count, 8)
    if lanes is not None:
        data = data[lanes.reshape(-1, 32)[:, : 8 * count]]
    data = data.reshape(-1, 8)
    matrix = memory.matrix(16, 2)
    matrix[rows] = data
    if several and (matrix[rows] != data).any():
        memory.report("RACE: lanes write different values to one shared address in one instruction")


OPERATIONS = {"mma": _mma, "ldmatrix": _load_matrix, "stmatrix": _store_matrix}
