"""What the issue model takes an H100's multiprocessor for, and each instruction for."""

import math
import re
from typing import NamedTuple

from .sass import Instruction

# In cycles and bytes where nothing else is said. "CUDA" is the programming guide for capability 9.0.
CONSTANTS = {
    "tensor_flop_per_clock": 4096,  # dense, 2-byte elements: the datasheet's 989 TFLOP/s over 132 x 1.83 GHz
    "wgmma_tail": 65,  # from a product's last cycle on the tensor cores to its result; measured by others
    "wgmma_queued": 8,  # wgmma that a warp may issue ahead of the tensor cores; assumed
    "shared_bytes_per_clock": 128,  # CUDA
    "l2_bytes_per_clock": 38.8,  # a multiprocessor's part while all of them read; measured by others
    "l2_latency": 400,  # of cp.async, beyond what its bytes take; measured by others
    "load_latency": 500,  # of a load from global memory into registers, whatever its bytes; assumed
    "barrier": 15,  # from a barrier's last warp to the next instruction; assumed
    "operands_read": 12,  # until the scoreboard of an instruction's operands is released; assumed
    "wgmma_operands_read": 20,  # the same for a wgmma whose left operand is in registers; assumed
    "registers": 65536, "shared_memory": 233472, "warps": 64, "programs": 32,  # CUDA
    "system_shared_memory": 1024, "registers_a_thread_come_by": 8,  # CUDA: of each program, and rounded up
}  # fmt: skip


class Unit(NamedTuple):
    pipe: str | None
    cycles: int = 0  # that an instruction of one warp keeps its scheduler's pipe
    latency: int = 20  # until the scoreboard of its result is released; where it has none, the stall counts say


# By opcode, the first pattern that fits. A scheduler has a quarter of what CUDA gives a multiprocessor in a clock: 16
# results on mufu, 128 on fma, 64 on alu and imad, 32 of shuffles, and 128 bytes between registers and shared memory.
# The uniform pipe, and lsu to and from global memory, are assumed. Latencies: measured by others, rounded.
UNITS = {
    r"MUFU": Unit("mufu", 8, 19),
    r"(FFMA|FMUL|FADD|FCHK|FSWZADD|HADD|HMUL|HFMA|HMNMX|HSET)": Unit("fma", 1),
    r"U?IMAD": Unit("imad", 2),
    r"(F2F|F2I|I2F|F2FP|I2FP|FRND)": Unit("alu", 2, 12),
    r"(U|R2UR|S2UR|CS2UR|VOTEU)": Unit("uniform", 1, 12),
    r"(LD|ST)(S|L|SM)\b.*\.(128|4)\b": Unit("lsu", 16, 33),  # LDSM.16.M88.4 is as wide as LDS.128
    r"(LD|ST)(S|L|SM)\b.*\.(64|2)\b": Unit("lsu", 8, 30),
    r"(LD|ST)(S|L|SM)\b": Unit("lsu", 4, 30),
    r"(SHFL|REDUX|VOTE|MATCH)": Unit("lsu", 4, 25),
    r"LDGSTS": Unit("lsu", 4),
    r"LDG\b": Unit("lsu", 4, CONSTANTS["load_latency"]),
    r"STG\b": Unit("lsu", 4),
    r"(HGMMA|WARPGROUP|BAR|LDGDEPBAR|DEPBAR|MEMBAR|FENCE|ERRBAR|WARPSYNC|BSSY|BSYNC|BRA|CALL|RET|EXIT|NOP)": Unit(None),
    r"": Unit("alu", 2),
}
# mma.sync, other products, bulk copies and their barriers: to play them as arithmetic would be wrong in silence.
UNKNOWN = r"(.MMA|[IQB]GMMA|UTMA|UBLKCP|SYNCS)"


class Step(NamedTuple):
    """An instruction as far as the model is concerned."""

    stall: int
    waits: tuple[int, ...]
    written: int | None
    read: int | None
    read_after: int
    unit: Unit
    does: str = ""  # "copy", "commit", "await copies", "product", "await products", "barrier" or nothing of these
    amount: float = 0  # bytes to copy, cycles of the product, groups that may be outstanding after the wait
    useful: float = 0  # of a product's cycles, those of its multiplications
    commits: bool = False  # the product is the last of its group


def step(instruction: Instruction) -> Step:
    op, text = instruction.op, instruction.text
    if re.match(UNKNOWN, op):
        raise ValueError(f"an instruction that the model does not know: {text}")
    unit = next(unit for pattern, unit in UNITS.items() if re.match(pattern, op))
    read_after = CONSTANTS["wgmma_operands_read" if op.startswith("HGMMA") else "operands_read"]
    scheduled = max(1, instruction.stall), instruction.waits, instruction.written, instruction.read
    plain = Step(*scheduled, read_after, unit)
    if op.startswith("LDGSTS"):
        width = re.search(r"\.(64|128)\b", op)
        # The scheduler's warp stands for the four of its warpgroup.
        return plain._replace(does="copy", amount=4 * 32 * (int(width[1]) // 8 if width else 4))
    if op.startswith("LDGDEPBAR"):
        return plain._replace(does="commit")
    if op.startswith("DEPBAR"):
        groups = re.search(r"SB0, 0x(\w+)", text)
        if not groups:  # another scoreboard, whose releases would have to be counted
            raise ValueError(f"a wait that the model does not know: {text}")
        return plain._replace(does="await copies", amount=int(groups[1], 16))
    if op.startswith("WARPGROUP.DEPBAR"):
        return plain._replace(does="await products", amount=int(re.search(r"gsb0, 0x(\w+)", text)[1], 16))
    if op.startswith("HGMMA"):
        useful, taken = product_cycles(instruction)
        return plain._replace(does="product", amount=taken, useful=useful, commits="gsb0" in text)
    if op.startswith("BAR"):
        return plain._replace(does="barrier")
    return plain


def product_cycles(instruction: Instruction) -> tuple[float, float]:
    """Of a warpgroup's wgmma: the cycles of its multiplications, and those that it takes. Where the right operand is
    narrow it takes longer to read, with the left one where that is not in registers, than to multiply.
    """
    columns, terms = map(int, re.match(r"HGMMA\.64x(\d+)x(\d+)\.", instruction.op).groups())
    useful = 2 * 64 * columns * terms / CONSTANTS["tensor_flop_per_clock"]
    in_shared_memory = columns + (64 if re.search(r"HGMMA\S+\s+R\d+, gdesc", instruction.text) else 0)
    return useful, max(useful, 2 * terms * in_shared_memory / CONSTANTS["shared_bytes_per_clock"])


def occupancy(registers: int, shared: int, warps: int) -> int:
    """Programs that a multiprocessor holds: of ``registers`` a thread and ``shared`` bytes; 0 if not even one fits."""
    allotted = CONSTANTS["registers_a_thread_come_by"] * math.ceil(registers / CONSTANTS["registers_a_thread_come_by"])
    return min(
        CONSTANTS["registers"] // (32 * warps * allotted),
        CONSTANTS["shared_memory"] // (shared + CONSTANTS["system_shared_memory"]),
        CONSTANTS["warps"] // warps,
        CONSTANTS["programs"],
    )
