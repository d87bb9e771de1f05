"""What an issue model of an H100 says of the kernels' main loops, launch by launch, compiled for sm_90 without a GPU.

    python benchmarks/run.py modelled                                  # all launches, into results/modelled.json
    python benchmarks/run.py modelled --rows 'forward, head_dim 128'   # those whose row begins so: printed, not written
    python benchmarks/run.py modelled --compare earlier.json           # and, in Markdown, what has changed since

For every row of kernels/tiles.json whose elements have 2 bytes: the launch that `lrp-fast tune` times, and for dK dV
and edges the other one that the row serves. What is played is the innermost loop that has wgmma; of two the shorter,
which is the one without a mask. Where the compiler fell back to mma.sync, which the model does not know, the row says
so.

"share" is that of the tensor cores' dense peak while the loop runs, and no prediction of a time. The model knows no
rounding and no values; no bank conflicts, and not that wgmma and other instructions share what shared memory can do; no
misses of the L2; no clock that falls under load; and of a launch nothing but this loop: no prologues, no masked tiles,
no last programs that run alone. Of several programs on a multiprocessor the mean over five offsets is taken. Jumps
inside a loop count as not taken. The constants are in loops/h100.py. One kernel
gives the share its scale: Triton's tutorial attention, of which the model says 54 %, is reported to reach 47 to 49 %.
Small causes decide which of two warpgroups runs ahead: a difference of two points of share says nothing. Trust ratios,
not absolutes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from fnmatch import filter as matching
from pathlib import Path

from loops import calibration, h100, sass
from loops.play import Played, play

from lrp_fast.kernels import common, tiles
from lrp_fast.kernels.resources import compiled, resources
from lrp_fast.tuning.launches import work

ON = (9, 0)
# What a row serves, by how it begins: mostly, and besides.
LAUNCHES = {"dkv": ("dK dV", "dV alone"), "edges": ("strongest", "whole tiles")}


def measure(pattern: str = "*") -> dict:
    """The model's constants, the calibration, and the rows of tiles.json that match ``pattern`` or begin so."""
    rows = [row for row in matching(tiles.TABLE, f"{pattern}*") if "2 bytes" in row]
    if not rows:
        raise SystemExit(f"no row of tiles.json with elements of 2 bytes matches {pattern!r}")
    return {
        "constants": h100.CONSTANTS,
        "units": {opcodes: unit._asdict() for opcodes, unit in h100.UNITS.items()},
        "calibration": {"entry": calibration.ENTRY, **modelled(calibration.case(ON))},
        "rows": [
            {"row": row, "launch": launch, "entry": tiles.find(tiles.TABLE, row, ON), **modelled(case)}
            for row in rows
            for launch, case in launches(row)
        ],
    }


def launches(row: str) -> Iterator[tuple[str, common.Case]]:
    names = next((names for start, names in LAUNCHES.items() if row.startswith(start)), ("",))
    for seldom, name in enumerate(names):
        kernel, prepare = work(row, bool(seldom))
        cases = common.record({row: lambda prepare=prepare: prepare("meta")(tiles.TABLE)}, ON)
        (case,) = (case for case in cases if case[1] is kernel)
        yield name, case


def modelled(case: common.Case) -> dict:
    """What a launch takes of an H100, and the model's figures for its main loop."""
    warps, architecture = case[4], 10 * ON[0] + ON[1]
    taken = resources(case, architecture)
    programs = h100.occupancy(taken.registers, taken.shared, warps)
    loop, products = main_loop(sass.parse(sass.disassembled(compiled(case, architecture).asm["cubin"])))
    found = {
        "registers": taken.registers, "stack": taken.stack, "shared": taken.shared, "programs": programs,
        "products": products, "instructions": len(loop),
    }  # fmt: skip
    if products == "wgmma" and programs:
        cycles, idle = mean_over_offsets(loop, warps, programs)
        found |= {
            "cycles": round(cycles),
            "share": round(useful(loop) * warps / 4 / cycles, 3),
            "idle": {cause: round(unused) for cause, unused in idle.items()},
        }
    return found


def mean_over_offsets(loop: list[sass.Instruction], warps: int, programs: int) -> Played:
    """Programs that share a multiprocessor drift: the mean over five offsets between them, 0 to 4/5 of an iteration."""
    together = play(loop, warps, programs)
    if programs == 1:
        return together
    fifth = together.cycles * programs / 5
    played = [together, *(play(loop, warps, programs, apart=n * fifth) for n in range(1, 5))]
    idle = sum((Counter(one.idle) for one in played), Counter())
    return Played(sum(one.cycles for one in played) / 5, {cause: cycles / 5 for cause, cycles in idle.most_common()})


def main_loop(code: list[sass.Instruction]) -> tuple[list[sass.Instruction], str | None]:
    """The loop that most of the time goes to, and what multiplies in it; nothing and None without tensor cores."""
    for opcode, products in (("HGMMA", "wgmma"), ("HMMA", "mma.sync")):
        if loops := [loop for loop in sass.innermost_loops(code) if any(one.op.startswith(opcode) for one in loop)]:
            return min(loops, key=len), products
    return [], None


def useful(loop: list[sass.Instruction]) -> float:
    """The tensor cores' cycles for one warpgroup's multiplications."""
    return sum(h100.product_cycles(one)[0] for one in loop if one.op.startswith("HGMMA"))


def table(results: dict) -> str:
    lines = [
        f"{'':40} {'tile, warps, stages':20} {'regs':>4} {'stack':>5} {'shared':>6} {'programs':>8} {'cycles':>6} "
        f"{'share':>5}  most often the tensor cores idle for"
    ]
    for one in ({"row": "calibration", "launch": ""} | results["calibration"], *results["rows"]):
        share = f"{one['share']:.0%}" if "share" in one else "–"
        lines.append(
            f"{label(one):40} {str(one['entry'])[1:-1]:20} {one['registers']:>4} {one['stack']:>5} {one['shared']:>6} "
            f"{one['programs']:>8} {one.get('cycles', '–'):>6} {share:>5}  {cause(one)}"
        )
    return "\n".join([*lines, "", "Cycles: an iteration of one program. Elements of 4 bytes go without tensor cores."])


def label(one: dict) -> str:
    return one["row"].replace(", 2 bytes", "") + (f": {one['launch']}" if one["launch"] else "")


def cause(one: dict) -> str:
    """What the tensor cores idle for most, or why there is no share."""
    if "share" in one:
        name, cycles = next(iter(one["idle"].items()))
        return f"{name} ({cycles} cycles)"
    if one["products"] == "wgmma":
        return "does not fit"
    return f"by {one['products']}" if one["products"] else "no tensor cores"


def compared(before: Path, results: dict) -> str:
    """In Markdown, the launches whose figures are not those of the earlier report."""
    report = json.loads(before.read_text())
    earlier, later = ({label(one): one for one in rows} for rows in (report["results"]["rows"], results["rows"]))
    heads = ["tile, warps, stages", "registers", "stack", "shared", "programs", "share", "idle for"]
    lines = [f"| since {report['commit']} | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, one in later.items():
        if one != (old := earlier.get(name)):
            pairs = zip(_cells(old) if old else ["–"] * len(heads), _cells(one), strict=True)
            lines.append(f"| {name} | " + " | ".join(a if a == b else f"{a} → {b}" for a, b in pairs) + " |")
    if len(lines) == 2:
        lines = [f"Nothing has changed since {report['commit']}."]
    if any(report["results"][what] != results[what] for what in ("constants", "units")):
        lines += ["", f"The model itself is not the one of {report['commit']}."]
    return "\n".join(lines)


def _cells(one):
    numbers = (str(one["entry"])[1:-1], *(str(one[name]) for name in ("registers", "stack", "shared", "programs")))
    return [*numbers, f"{one['share']:.0%}" if "share" in one else "–", cause(one)]
