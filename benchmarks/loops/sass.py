"""Machine code for sm_90 as `play` plays it: instructions with what ptxas scheduled for them, and loops.

An instruction has 128 bits. The top ones are for the scheduler, which checks no registers itself: how many cycles the
warp stalls behind this instruction, and six counters ("scoreboards") that results of unknown latency are awaited by.
Where the bits are: Jia et al., arXiv 1804.06826, for Volta; they have not moved since.
"""

import re
import subprocess
import tempfile
from typing import NamedTuple

import triton

_CONTROL = 41  # the first of the scheduler's bits in an instruction's upper half
_NONE = 7  # no scoreboard


class Instruction(NamedTuple):
    text: str  # with predicate and operands
    stall: int = 1  # cycles until the warp's next instruction
    written: int | None = None  # the scoreboard that is released when the result is there
    read: int | None = None  # the one that is released when the operands have been read
    waits: tuple[int, ...] = ()  # those that have to be released before
    target: int | None = None  # the number of the instruction that it branches to

    @property
    def op(self) -> str:
        """HGMMA.64x128x16.F32.BF16, say."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]


def disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-hex", "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(listing: str) -> list[Instruction]:
    """The instructions of what ``nvdisasm -hex -c`` prints of one kernel."""
    found, labels = [], {}
    text = None
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(found)
        elif first := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;?\s*/\* 0x[0-9a-f]{16} \*/", line):
            text = first[1].rstrip(" ;")
        elif text is not None and (second := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line)):
            found.append(_scheduled(text, int(second[1], 16)))
            text = None
    return [one._replace(target=labels.get(_label(one.text))) for one in found]


def _scheduled(text: str, upper: int) -> Instruction:
    control = upper >> _CONTROL
    written, read, waits = control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    return Instruction(
        text,
        control & 15,
        None if written == _NONE else written,
        None if read == _NONE else read,
        tuple(number for number in range(6) if waits >> number & 1),
    )


def _label(text: str) -> str | None:
    branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text)
    return branch and branch[1]


def innermost_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The bodies of the loops that hold no other, in the order of the code. Jumps inside them are not followed: what
    they skip is there."""
    last: dict[int, int] = {}  # of each loop, by its first instruction
    for number, instruction in enumerate(code):
        if instruction.target is not None and instruction.target <= number:
            last[instruction.target] = number
    spans = sorted(last.items())
    return [
        code[first : end + 1]
        for first, end in spans
        if not any((first, end) != other and first <= other[0] and other[1] <= end for other in spans)
    ]
