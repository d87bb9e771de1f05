"""Instructions that a whole warp executes together: shfl.sync, redux.sync and vote.sync (PTX ISA 9.7.9 and 9.7.13)."""

import numpy as np

from tests.ptx.parsing import modifiers

LANES = np.arange(32)
REDUCE = {
    "add": (np.add, "u4"), "and": (np.bitwise_and, "u4"), "or": (np.bitwise_or, "u4"), "xor": (np.bitwise_xor, "u4"),
}  # fmt: skip
LEAST = {"min": np.minimum, "max": np.maximum}


def _shuffle(w, i):
    mode = i.parts[2]
    modifiers(i, "sync", mode)
    if i.parts[-1] != "b32" or mode not in ("bfly", "idx", "up", "down") or i.operands[4] != "-1":
        raise NotImplementedError(i.text)
    source, by, bounds = w.read(i.operands[1], "u4"), w.read(i.operands[2], "u4"), int(i.operands[3], 0)
    value, *valid = i.operands[0].split("|")
    results = [(value, "u4"), *((p, "b") for p in valid)]
    w.call(f"W.shuffle(t, {mode!r}, {source}, {by}, {bounds}, {w.lanes})", results)


def _reduce(w, i):
    """redux: the last operand, who takes part, has to be everybody."""
    name, kind = i.parts[2], i.parts[-1]
    modifiers(i, "sync", name)
    if w.read(i.operands[2], "u4") != w.constant(-1 & 0xFFFFFFFF, "u4") and not i.operands[2].startswith("%"):
        raise NotImplementedError(i.text)
    kind = {"b32": "u4", "u32": "u4", "s32": "i4"}[kind]
    if name not in REDUCE and name not in LEAST:
        raise NotImplementedError(i.text)
    members = w.read(i.operands[2], "u4")
    w.call(f"W.reduce(t, {name!r}, {w.read(i.operands[1], kind)}, {members}, {w.lanes})", [(i.operands[0], kind)])


def _vote(w, i):
    mode, kind = i.parts[2], {"pred": "b", "b32": "u4"}[i.parts[-1]]
    modifiers(i, "sync", mode)
    if (mode, kind) not in (("any", "b"), ("all", "b"), ("ballot", "u4")) or i.operands[2] != "-1":
        raise NotImplementedError(i.text)
    w.call(f"W.vote(t, {mode!r}, {w.predicate(i.operands[1])}, {w.lanes})", [(i.operands[0], kind)])


def shuffle(team, mode, value, by, bounds, lanes):
    """The value, and whether it is another lane's. ``bounds``: segments (bits 8 to 12) and their end (0 to 4)."""
    team.collective(lanes)
    value = team.wide(value).reshape(-1, 32)
    by = by.astype(np.int64)
    by = by.reshape(-1, 32) & 31 if by.ndim else by & 31
    segment, end = bounds >> 8 & 31, bounds & 31
    first, last = LANES & segment, LANES & segment | end & ~segment & 31
    if mode == "up":
        source = LANES - by
        valid = source >= last
    else:
        source = {"bfly": LANES ^ by, "idx": first | by & ~segment & 31, "down": LANES + by}[mode]
        valid = source <= last
    source = np.where(valid, source, LANES)
    if source.ndim == 1:
        return value[:, source].reshape(-1), np.tile(valid, len(value))
    return np.take_along_axis(value, source, 1).reshape(-1), valid.reshape(-1)


def reduce(team, name, value, members, lanes):
    team.collective(lanes)
    if (members != np.uint32(0xFFFFFFFF)).any():
        raise NotImplementedError("redux.sync of a part of a warp")
    value = team.wide(value).reshape(-1, 32)
    function = LEAST[name] if name in LEAST else REDUCE[name][0]
    return (np.repeat(function.reduce(value, 1, dtype=value.dtype), 32),)


def vote(team, mode, predicate, lanes):
    team.collective(lanes)
    value = team.wide(predicate).reshape(-1, 32)
    if mode == "ballot":
        found = (value.astype(np.uint32) << LANES.astype(np.uint32)).sum(1, dtype=np.uint32)
    else:
        found = value.any(1) if mode == "any" else value.all(1)
    return (np.repeat(found, 32),)


OPERATIONS = {"shfl": _shuffle, "redux": _reduce, "vote": _vote}
