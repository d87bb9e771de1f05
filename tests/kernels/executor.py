"""Launches of kernels as calls of the executor of their compiled code, `tests/ptx`: without a GPU."""

import re
from collections import Counter

from lrp_fast.kernels import common
from lrp_fast.kernels.resources import compiled
from tests.ptx import launching


class Executor:
    """A `common.Launch`: compiles for sm_``target`` what a launch asks for, once, and executes it.

    ``reports`` counts what was found, with the kernel's name before it: whoever reads them clears them.
    """

    def __init__(self, target: int):
        self.target, self.on = target, divmod(target, 10)
        self.programs: dict[tuple, tuple] = {}  # what a program was compiled from, to (program, bytes of shared memory)
        self.used: set[tuple] = set()  # keys of programs; whoever reads them clears them
        self.launches = 0
        self.reports: Counter[str] = Counter()

    def __call__(self, kernel, programs, arguments, constexprs, num_warps, num_stages):
        if not programs:
            return
        signature, constants = common.specialised(kernel, arguments, constexprs, self.on)
        case = (kernel.fn.__name__, kernel, signature, constants, num_warps, num_stages)
        key = identity(case)
        if key not in self.programs:
            made = compiled(case, self.target)
            self.programs[key] = launching.Program(made.asm["ptx"]), made.metadata.shared
        self.used.add(key)
        program, shared = self.programs[key]
        given = [x for x, kind in zip(arguments, signature.values(), strict=False) if kind != "constexpr"]
        self.launches += 1
        try:
            found = launching.launch(program, shared, programs, given)
        except Exception as error:
            error.add_note(f"in {case[0]} for sm_{self.target}")
            raise
        for report, count in found.items():
            short = re.sub(r"\{ *(%\w+),[^{}]*?(%\w+) *\}", r"{\1 ... \2}", report)
            self.reports[f"{case[0]}: {short}"] += count


def identity(case: common.Case) -> tuple:
    """Of one of `common.record`'s cases: equal for what is compiled alike, whatever its name."""
    _, kernel, signature, constants, num_warps, num_stages = case
    return kernel.fn.__module__, kernel.fn.__name__, *map(_frozen, (signature, constants)), num_warps, num_stages


def _frozen(named: dict) -> tuple:
    return tuple((name, str(value)) for name, value in named.items())
