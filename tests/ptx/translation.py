"""Basic blocks as Python functions over numpy arrays that hold a register of every thread.

A block is translated for a whole batch of programs, for some of its warps (a team, machine.py), and for some lanes of
those: what is computed is the same, where it is read and written differs. Registers are Python variables within a
block, one for each type that they are seen as ("r5f4_7" is %r5 as float32). A value that all threads share may be a
numpy scalar. What has no translation raises NotImplementedError.
"""

import itertools
import re

import numpy as np

from tests.ptx import arithmetic, asynchronous, matrix, values, warps, wgmma
from tests.ptx.parsing import NUMPY, REGISTERS, address, bank_of, elements, modifiers, width

WHOLE, TEAM, LANES = "whole", "team", "lanes"

SPECIAL = {
    "%tid.x": "t.tid", "%ctaid.x": "t.ctaid", "%nctaid.x": "M.grid", "%ntid.x": "M.ntid", "%laneid": "(t.tid & {31})",
    "%tid.y": "{0}", "%tid.z": "{0}", "%ctaid.y": "{0}", "%ctaid.z": "{0}", "%nctaid.y": "{1}", "%nctaid.z": "{1}",
}  # fmt: skip
# Which cache a line goes to, for how long, and who else may look at it: nothing that is modelled.
HINTS = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "L2::cache_hint", "L2::128B", "L2::256B", "L2::64B"}
HINTS |= {f"L1::{x}" for x in ("evict_normal", "evict_first", "evict_last", "evict_unchanged", "no_allocate")}
HINTS |= {f"L2::{x}" for x in ("evict_normal", "evict_first", "evict_last")}

_SHARED_NAMES = {
    **{name: getattr(np, kind) for name, kind in {
        "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "f2": "float16", "i4": "int32", "u4": "uint32",
        "f4": "float32", "i8": "int64", "u8": "uint64", "f8": "float64"}.items()},
    "np": np, "where": np.where, "V": values, "W": warps, "A": asynchronous, "X": matrix, "G": wgmma,
}  # fmt: skip


class Writer:
    """The function of one block, while it is written."""

    def __init__(self, kernel, number, form, first):
        self.kernel, self.number, self.form = kernel, number, form
        self.next_instruction = first  # its number in the kernel
        self.lines = []
        self.constants = {}
        self.held = {}  # register to the variables that hold it, by numpy type
        self.written = set()
        self.names = itertools.count()
        self.condition = None  # of the present instruction: a Python expression, or None
        self.delayed = []  # mma.sync that may wait for more of them (matrix.py): number, kind and registers of each
        self.leave = f"t.go({number + 1}, m)"  # what comes when all registers are put back

    def function(self):
        for instruction in self.kernel.blocks[self.number]:
            self.instruction(instruction)
        self.flush()
        start = ["def block(M, t, m):", "r, rd, rs, p, x = M.r, M.rd, M.rs, M.p, t.index"]
        source = "\n  ".join([*start, *self.lines, *self.put_back(), self.leave])
        names = {**_SHARED_NAMES, **self.constants, "take": take, "put": put, "I": self.kernel.instructions}
        exec(compile(source, f"<{self.kernel.name}, block {self.number}>", "exec"), names)
        return names["block"]

    def put_back(self):
        """For other blocks."""
        for register in self.written - self.kernel.local[self.number]:
            bank, number = bank_of(register), register[1:].lstrip("rdsp")
            name = next(iter(self.held[register].values()))
            if self.form == WHOLE:
                yield f"{bank}[{number}] = {name}"
            else:
                yield f"{bank}[{number}] = put({bank}[{number}], x, {name}, M.threads)"

    def instruction(self, i):
        if self.delayed and i.parts[0] != "mma" and self.delayed_registers() & i.registers:
            self.flush()
        conditions = []
        if i.predicate is not None and i.parts[0] != "bra":
            conditions.append(self.predicate(f"{'!' if i.negated else ''}{i.predicate}"))
        if self.form == LANES:
            conditions.append("m")
        self.condition = " & ".join(conditions) or None
        translate = OPERATIONS.get(i.parts[0])
        if translate is None:
            raise NotImplementedError(f"no translation for {i.text}")
        try:
            translate(self, i)
        except (KeyError, IndexError, ValueError) as error:
            raise NotImplementedError(f"no translation for {i.text}: {error!r}") from error
        self.next_instruction += 1

    def delayed_registers(self):
        return {x for _, _, *operands in self.delayed for operand in operands for x in operand}

    def flush(self):
        """What is delayed comes now, whatever the present instruction's condition."""
        if self.delayed:
            delayed, self.delayed = self.delayed, []
            present = self.condition, self.next_instruction
            self.condition, self.next_instruction = "m" if self.form == LANES else None, delayed[0][0]
            matrix.write_mma(self, delayed)
            self.condition, self.next_instruction = present

    # Reading and writing operands.

    def constant(self, value, kind):
        scalar = getattr(np, {"i": "int", "u": "uint", "f": "float"}[kind[0]] + str(8 * int(kind[1])))
        return self.constant_bits(np.array(value, scalar)[()], kind)

    def constant_bits(self, scalar, kind):
        name = f"c{kind}_{scalar.view(f'u{kind[1]}')}"
        self.constants[name] = scalar
        return name

    def name(self, register, kind):
        """Never the same again, so that two registers may share one."""
        return f"{register[1:]}{kind}_{next(self.names)}"

    def bits(self, register, kind):
        """The variable that holds a register as the numpy type ``kind``."""
        held = self.held.setdefault(register, {})
        if kind not in held:
            name = self.name(register, kind)
            if held:
                value = f"{next(iter(held.values()))}.view({kind})"
            else:
                bank, number = bank_of(register), register[1:].lstrip("rdsp")
                value = f"{bank}[{number}]" if self.form == WHOLE else f"take({bank}[{number}], x)"
                value += "" if kind == "b" else f".view({kind})"
            self.lines.append(f"{name} = {value}")
            held[kind] = name
        return held[kind]

    def read(self, operand, kind):
        """An expression of a numpy array or scalar of the type ``kind``."""
        if operand in SPECIAL:
            if kind != "u4":
                raise NotImplementedError(f"{operand} as {kind}")
            return re.sub(r"\{(\d+)\}", lambda found: self.constant(int(found[1]), "u4"), SPECIAL[operand])
        size = int(kind[1])
        if operand.startswith("%"):
            have = REGISTERS[bank_of(operand)]
            if have == size:
                return self.bits(operand, kind)
            if have > size:  # the lower part of a wider register
                return f"{self.bits(operand, f'u{have}')}.astype(u{size}).view({kind})"
            raise NotImplementedError(f"{operand} as {kind}")
        if operand in self.kernel.shared:
            return self.constant(self.kernel.shared[operand], kind)
        if re.match(r"0[fF][0-9A-Fa-f]{8}$|0[dD][0-9A-Fa-f]{16}$", operand):
            scalar = np.array(int(operand[2:], 16), f"u{(len(operand) - 2) // 2}")[()]
            if scalar.itemsize != size:
                raise NotImplementedError(f"{operand} as {kind}")
            return self.constant_bits(scalar.view(kind), kind)
        value = int(operand.rstrip("U"), 0) & (1 << 8 * size) - 1
        return self.constant_bits(np.array(value, f"u{size}")[()].view(kind), kind)

    def predicate(self, operand):
        if operand.startswith("!"):
            return f"(~{self.predicate(operand[1:])})"
        if operand in ("1", "-1", "0"):
            self.constants["yes"], self.constants["no"] = np.bool_(True), np.bool_(False)
            return "no" if operand == "0" else "yes"
        if not re.fullmatch(r"%p\d+", operand):
            raise NotImplementedError(f"predicate {operand}")
        return self.bits(operand, "b")

    def write(self, register, expression, kind):
        """Where the condition holds. ``kind`` is the expression's type, "b" for predicates."""
        if register == "_":
            return
        if kind != "b" and REGISTERS[bank_of(register)] != int(kind[1]):
            raise NotImplementedError(f"{kind} to {register}")
        if self.condition:
            expression = f"where({self.condition}, {expression}, {self.bits(register, kind)})"
        name = self.name(register, kind)
        self.lines.append(f"{name} = {expression}")
        self.held[register] = {kind: name}
        self.written.add(register)

    def move(self, register, source):
        """One register to another of the same size, as whatever it is held."""
        if self.condition or not self.held.get(source):
            kind = next(iter(self.held.get(source) or [f"u{REGISTERS[bank_of(source)]}"]))
            return self.write(register, self.bits(source, kind), kind)
        self.held[register] = self.held[source].copy()
        self.written.add(register)

    def widen(self, register, expression, kind):
        """As `write`, of what may be narrower than the register: sign or zeros fill it (PTX ISA 9.7.9, ld and cvt)."""
        size = REGISTERS[bank_of(register)]
        if int(kind[1]) < size:
            expression, kind = f"({expression}).astype({kind[0]}{size})", f"{kind[0]}{size}"
        self.write(register, expression, kind)

    # Instructions that look at more than registers.

    @property
    def lanes(self):
        """The argument that says who takes part, None being all."""
        return self.condition or "None"

    def call(self, expression, results=()):
        """An instruction that can give reports; ``results``: the registers of what it returns, and as which type."""
        self.lines.append(f"M.instruction = I[{self.next_instruction}]")
        self.lines.append(f"v = {expression}" if results else expression)
        for n, (register, kind) in enumerate(results):
            self.write(register, f"v[{n}]", kind)

    def address(self, operand):
        base, offset = address(operand)
        if base in self.kernel.shared:
            return self.constant(self.kernel.shared[base] + offset, "i8")
        kind = "u8" if base.startswith("%rd") else "u4"
        name = self.bits(base, kind)
        if not offset:
            return name
        return f"({name} + {self.constant_bits(np.array(offset & (1 << 8 * int(kind[1])) - 1, kind)[()], kind)})"

    def tuple(self, operand, kind):
        return f"({', '.join(self.read(x, kind) for x in elements(operand))},)"


def take(register, index):
    return register[index] if register.ndim and index is not None else register


def put(register, index, value, threads):
    """A register of all threads, with ``value`` for those in ``index``."""
    if index is None:
        return value
    old = register.view(value.dtype)
    new = old.copy() if old.ndim else np.full(threads, old)
    new[index] = value
    return new


# ---- Control (PTX ISA 9.7.12) ----


def _branch(w, i):
    if set(i.parts[1:]) - {"uni"}:
        raise NotImplementedError(i.text)
    target = w.kernel.labels[i.operands[0]]
    if i.predicate is None:
        w.leave = f"t.go({target}, m)"
    else:
        condition = w.predicate(f"{'!' if i.negated else ''}{i.predicate}")
        w.leave = f"t.branch({condition}, {target}, {w.number + 1}, m)"


def _leave(w, i):
    if i.predicate is not None:
        raise NotImplementedError(i.text)
    w.leave = "t.leave(m)"


def _barrier(w, i):
    """bar.sync and bar.warp.sync (9.7.13)"""
    if i.predicate is not None:
        raise NotImplementedError(i.text)
    if i.opcode == "bar.warp.sync" and i.operands == ["-1"]:
        w.call("t.warp_barrier(m)")
    elif i.opcode in ("bar.sync", "barrier.sync") and i.operands == ["0"]:
        w.leave = f"t.barrier({w.number + 1}, m)"
    else:
        raise NotImplementedError(i.text)


# ---- Memory (PTX ISA 9.7.9) ----


def _load(w, i):
    space, kind = i.parts[1], NUMPY[i.parts[-1]]
    if space == "param":
        return _load_parameter(w, i, kind)
    modifiers(i, space, *({"v2", "v4", "v8"} | HINTS if space == "global" else {"v2", "v4"}))
    size, count = width(i.parts)
    memory = {"global": "M.memory", "shared": "M.shared"}[space]
    w.lines.append(f"M.instruction = I[{w.next_instruction}]")
    w.lines.append(f"v = {memory}.load(t, {w.address(i.operands[1])}, {size}, {count}, {w.lanes})")
    for n, register in enumerate(elements(i.operands[0])):
        w.widen(register, f"v[{n}]" if kind[0] == "u" else f"v[{n}].view({kind})", kind)


def _load_parameter(w, i, kind):
    modifiers(i, "param")
    name, offset = address(i.operands[1])
    if offset:
        raise NotImplementedError(i.text)
    w.widen(i.operands[0], f"M.arguments[{int(name.rsplit('_', 1)[1])}].astype(u{kind[1]}).view({kind})", kind)


def _store(w, i):
    space, kind = i.parts[1], NUMPY[i.parts[-1]]
    modifiers(i, space, *({"v2", "v4", "v8"} | HINTS if space == "global" else {"v2", "v4"}))
    memory = {"global": "M.memory", "shared": "M.shared"}[space]
    size, _ = width(i.parts)
    stored = w.tuple(i.operands[1], f"u{kind[1]}")
    w.call(f"{memory}.store(t, {w.address(i.operands[0])}, {stored}, {size}, {w.lanes})")


def _atomic(w, i):
    """atom.add and red.add (9.7.13) of integers in global memory."""
    if i.parts[-1] not in ("u32", "s32", "u64", "b32", "b64") or "add" not in i.parts or "global" not in i.parts:
        raise NotImplementedError(i.text)
    modifiers(i, "global", "add", "gpu", "sys", "cta", "relaxed", "acq_rel", "acquire", "release")
    kind = f"u{NUMPY[i.parts[-1]][1]}"
    *old, place, value = i.operands
    call = f"M.memory.add(t, {w.address(place)}, {w.read(value, kind)}, {kind[1]}, {w.lanes})"
    w.call(call, [(old[0], kind)] if old else [])


# ---- Asynchronous copies (PTX ISA 9.7.9.25) and fences ----


def _copy(w, i):
    if i.opcode == "cp.async.commit_group":
        w.lines.append(f"A.commit(t, {w.lanes})")
    elif i.opcode == "cp.async.wait_group":
        w.call(f"A.wait(t, {int(i.operands[0], 0)}, {w.lanes})")
    elif i.opcode == "cp.async.wait_all":
        w.call(f"A.wait_all(t, {w.lanes})")
    elif i.parts[1:3] in (["async", "ca"], ["async", "cg"]):
        if set(i.parts[3:]) - {"shared", "global"} - HINTS:
            raise NotImplementedError(i.text)
        to, source, count, *rest = i.operands
        if len(rest) > 1 or rest and rest[0].startswith("%p"):
            raise NotImplementedError(i.text)
        given = w.read(rest[0], "u4") if rest else "None"
        w.call(f"A.copy(t, {w.address(to)}, {w.address(source)}, {int(count, 0)}, {given}, {w.lanes})")
    else:
        raise NotImplementedError(i.text)


def _fence(w, i):
    if i.opcode not in ("fence.proxy.async", "fence.proxy.async.shared::cta"):
        raise NotImplementedError(i.text)
    w.lines.append(f"M.shared.races.fence_proxy(t.of(t.threads, t.some({w.lanes})))")


OPERATIONS = {
    **arithmetic.OPERATIONS, **warps.OPERATIONS, **matrix.OPERATIONS, **wgmma.OPERATIONS,
    "bra": _branch, "ret": _leave, "exit": _leave, "bar": _barrier, "barrier": _barrier,
    "ld": _load, "st": _store, "atom": _atomic, "red": _atomic, "cp": _copy, "fence": _fence,
}  # fmt: skip
