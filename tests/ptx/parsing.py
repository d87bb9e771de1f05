"""PTX text as instructions in basic blocks (PTX ISA 4, "Syntax"), as much of it as Triton writes: one entry function,
virtual registers, one array of shared memory whose size the launch decides, and possibly some of a fixed size.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property

# The last instruction of a basic block: control leaves, or waits for other threads.
ENDS = ("bra", "bar.sync", "barrier.sync", "ret", "exit")
REGISTERS = {"rs": 2, "r": 4, "rd": 8}  # bytes of one, by kind; predicates have none
REGISTER = re.compile(r"%(?:rd|rs|r|p)\d+")
# How numpy sees the types. It has no bf16.
NUMPY = {
    "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2",
    "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8",
}  # fmt: skip


@dataclass(eq=False)
class Instruction:
    text: str
    opcode: str
    operands: list[str]
    predicate: str | None  # "%p1" of "@%p1" or "@!%p1"
    negated: bool
    line: int  # of the source file, from .loc
    file: str  # its name; empty if unknown

    @property
    def place(self):
        return f"source line {self.line}" + f" of {self.file}" * bool(self.file)

    @cached_property
    def parts(self):
        return self.opcode.split(".")

    @cached_property
    def registers(self):
        return set(REGISTER.findall(self.text))

    @property
    def ends_block(self):
        return self.opcode.startswith(ENDS)


@dataclass(eq=False)
class Kernel:
    name: str
    parameters: list[str]  # types, without their dot
    threads: int  # of a program
    registers: dict[str, int]  # "r" to the number of registers %r0, %r1, ...
    blocks: list[list[Instruction]]
    labels: dict[str, int]  # to the number of a block
    shared: dict[str, int]  # variables in shared memory to their offsets
    static_shared: int  # bytes of shared memory that the text itself asks for
    local: list[set[str]]  # registers of each block that no other block has, and that it writes before it reads them
    narrowest: dict[str, int]  # bytes of the narrowest access to "shared" and to "global" memory

    @cached_property
    def instructions(self):
        return [instruction for block in self.blocks for instruction in block]


def parse(ptx):
    if ptx.count(".entry ") != 1 or re.search(r"^\s*(\.visible )?\.func", ptx, re.M):
        raise NotImplementedError("PTX with other than one entry function, or with functions to call")
    head, body = ptx.split(".entry ", 1)[1].split(")\n", 1)
    threads = re.findall(r"\.(?:reqntid|maxntid) (\d+)(?:, 1)*$", body, re.M)
    if not threads:
        raise NotImplementedError("a kernel that does not say how many threads it has")
    body = body[body.index("{") + 1 :]
    shared, static = _shared(ptx)
    files = {number: path.rpartition("/")[2] for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"(.+?)"', ptx, re.M)}
    blocks, labels = _blocks(body, files)
    return Kernel(
        name=head.split("(")[0].strip(),
        parameters=re.findall(r"\.param \.(\w+)[^,\n]*?\w+_param_\d+", head),
        threads=int(threads[0]),
        registers={name: int(count) for name, count in re.findall(r"\.reg \.\w+\s+%(\w+?)<(\d+)>;", body)},
        blocks=blocks,
        labels=labels,
        shared=shared,
        static_shared=static,
        local=_local(blocks),
        narrowest={space: _narrowest(blocks, space) for space in ("shared", "global")},
    )


def _shared(ptx):
    """Offsets of the variables, and the bytes of those with a size. What the launch decides on begins at 0 too, as
    Triton has only one kind in a kernel: both at once is refused.
    """
    offsets, end, sized = {}, 0, False
    for align, name, size in re.findall(r"\.shared(?: \.align (\d+))? \.b8 (\w+)\[(\d*)\]", ptx):
        end = -(-end // int(align or 1)) * int(align or 1)
        offsets[name] = end
        end += int(size or 0)
        sized |= bool(size)
    if sized and re.search(r"\.extern \.shared", ptx):
        raise NotImplementedError("shared memory of a fixed size beside that of the launch")
    return offsets, end


def _blocks(body, files):
    blocks, labels, line, file = [[]], {}, 0, ""
    for statement in _statements(body):
        if re.match(r"\.loc\s", statement):
            number, line = statement.split()[1:3]
            line, file = int(line), files.get(number, "")
        elif statement.startswith("."):
            if not statement.startswith((".reg", ".pragma")):
                raise NotImplementedError(statement)
        elif statement.endswith(":"):
            # The compiler's marks for the debugger. Nothing jumps to them.
            if not statement.startswith(("$L__tmp", "$L__func")):
                if blocks[-1]:
                    blocks.append([])
                labels[statement[:-1]] = len(blocks) - 1
        else:
            blocks[-1].append(_instruction(statement, line, file))
            if blocks[-1][-1].ends_block:
                blocks.append([])
    if not blocks[-1]:
        blocks.pop()
    return blocks, labels


def _statements(body):
    for raw in body.splitlines():
        if raw.startswith("}"):  # the function's own brace, in the first column
            return
        text = re.sub(r"//.*", "", raw).strip()
        if re.fullmatch(r"\$?\w+:|\.loc\s.*", text):
            yield text
            continue
        for piece in text.split(";"):
            # A scope around a few instructions: a brace that is not an operand's.
            piece = piece.strip()
            if piece.startswith("{") and not piece.startswith("{%"):
                piece = piece[1:].strip()
            if piece not in ("", "}"):
                yield piece


def _instruction(statement, line, file):
    predicate, negated, text = None, False, statement
    if statement.startswith("@"):
        guard, text = statement.split(None, 1)
        negated = guard.startswith("@!")
        predicate = guard.lstrip("@!")
    opcode, _, rest = re.sub(r"\s+", " ", text).partition(" ")
    opcode = re.sub(r"^(ld|st)\.shared::cta\b", r"\1.shared", opcode)  # the same: of a cluster nothing is supported
    return Instruction(re.sub(r"\s+", " ", statement), opcode, split_operands(rest), predicate, negated, line, file)


def split_operands(text):
    """Apart at commas that are not inside braces or brackets."""
    parts, depth, last = [], 0, 0
    for i, character in enumerate(text):
        if character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[last:i].strip())
            last = i + 1
    return [*parts, text[last:].strip()] if text[last:].strip() else parts


def elements(operand):
    """The list of {%r1, %r2}, and of a lone %r1."""
    return [x.strip() for x in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def address(operand):
    """Base and offset of [%r1 + 16]."""
    found = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    if not found:
        raise NotImplementedError(f"address {operand}")
    return found[1], int(found[2] or "0", 0)


def modifiers(instruction, *allowed):
    """What an opcode says between its name and its type has to be known."""
    unknown = set(instruction.parts[1:-1]) - set(allowed)
    if unknown:
        raise NotImplementedError(f"{instruction.text}: {' '.join(sorted(unknown))}")


@cache
def bank_of(register):
    if not REGISTER.fullmatch(register):
        raise NotImplementedError(f"register {register}")
    return register[1:].rstrip("0123456789")


def width(parts):
    """Bytes that one thread accesses with ld, st, cp.async, atom or red, and the number of elements they are."""
    count = next((int(x[1:]) for x in parts if re.fullmatch(r"v[248]", x)), 1)
    if parts[-1] not in NUMPY:
        raise NotImplementedError(".".join(parts))
    return int(NUMPY[parts[-1]][1]) * count, count


def _local(blocks):
    seen, elsewhere = {}, set()
    first = [{} for _ in blocks]  # instruction of each register
    for number, block in enumerate(blocks):
        for i in block:
            for register in i.registers:
                first[number].setdefault(register, i)
                if seen.setdefault(register, number) != number:
                    elsewhere.add(register)
    return [{x for x, i in found.items() if x not in elsewhere and _writes(i, x)} for found in first]


def _writes(i, register):
    """Without reading it, whatever is there."""
    if i.predicate is not None or i.operands[0].startswith("[") or i.opcode.startswith("wgmma"):
        return False  # wgmma adds to its results
    return register not in REGISTER.findall(" ".join(i.operands[1:]))


def _narrowest(blocks, space):
    """No access is a part of this, or lies across two: what is known of memory can be kept by pieces of this size."""
    found = [16]
    for i in (instruction for block in blocks for instruction in block):
        if i.opcode.startswith(("cp.async.ca", "cp.async.cg")):  # 4, 8 or 16, in both spaces
            found.append(int(i.operands[2], 0))
        elif i.opcode.startswith(("ld.", "st.", "atom.", "red.")) and space in i.parts:
            found.append(width(i.parts)[0])
    return min(found)
