"""Is a missing synchronisation noticed? One after the other is taken out of a compiled kernel, or made weaker.

``python -m tests.ptx.mutation 90 forward`` (from the root; or dq, dkv, gamma) prints it for the kernels of attention.
"""

import re
import sys
from collections import Counter

import torch

from tests.ptx.compiling import compiled, copies
from tests.ptx.launching import Program, launch

SITE = re.compile(r"\s*(bar\.sync|bar\.warp\.sync|cp\.async\.wait_group|fence\.proxy|wgmma\.wait_group)")
COUNTED = re.compile(r"(\s*(?:cp\.async|wgmma)\.wait_group\S*)\s+(\d+);")


def sites(ptx):
    """Numbers of the lines, from 1, that wait for something or make it visible, and what they say."""
    return {n: line.strip() for n, line in enumerate(ptx.splitlines(), 1) if SITE.match(line)}


def mutants(ptx):
    """(line, "deleted" or "weakened", PTX): without that line, or where it waits for groups, waiting for one less."""
    lines = ptx.splitlines()
    for n in sites(ptx):
        yield n, "deleted", "\n".join([*lines[: n - 1], *lines[n:], ""])
        counted = COUNTED.match(lines[n - 1])
        if counted:
            weaker = f"{counted[1]} {int(counted[2]) + 1};"
            yield n, "weakened", "\n".join([*lines[: n - 1], weaker, *lines[n:], ""])


def judged(ptx, shared, programs, arguments):
    """(line, how, kinds of report, whether the results are other ones) for each mutant."""
    right = copies(arguments)
    reports = launch(Program(ptx), shared, programs, right)
    if reports:
        raise AssertionError(f"the kernel itself gives reports: {reports}")
    for n, how, mutant in mutants(ptx):
        given = copies(arguments)
        found = launch(Program(mutant), shared, programs, given)
        other = any(
            not torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
            for a, b in zip(right, given, strict=True)
            if isinstance(a, torch.Tensor) and a.dim()
        )
        yield n, how, Counter(report.split(": ")[0 if report[:4] != "RACE" else 1] for report in found), other


def attention_launch(name, on):
    """(PTX, shared memory, programs, arguments) of one of attention's kernels: the last 300 of 450 tokens ask, in
    bfloat16, so that the tiles on the diagonal, which have a loop of their own, are two a program.
    """
    from lrp_fast.kernels import attention
    from lrp_fast.kernels.common import instead

    found = {}

    def run(kernel, programs, arguments, constexprs, num_warps, num_stages):
        ptx, shared, parameters = compiled(kernel, arguments, constexprs, num_warps, num_stages, on)
        found[kernel.fn.__name__] = ptx, shared, programs, copies(parameters)
        launch(Program(ptx), shared, programs, parameters)

    torch.manual_seed(0)
    query, g = (torch.randn(1, 300, 1, 64, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
    key, value = (torch.randn(1, 450, 1, 64, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
    options = {"scale": 0.125, "causal": True, "window": None, "softcap": None}
    with instead(run, on):
        o, lse, _ = attention.forward(query, key, value, **options)
        rules = {"value_share": 1.0, "score_share": 1.0, "ratio": False}
        attention.backward(g, query, key, value, o, lse, None, **options, **rules)
    return found[f"{name}_kernel"]


def main(architecture, name):
    ptx, shared, programs, arguments = attention_launch(name, divmod(int(architecture), 10))
    lines, noticed, count = ptx.splitlines(), 0, 0
    for n, how, kinds, other in judged(ptx, shared, programs, arguments):
        noticed, count = noticed + bool(kinds), count + 1
        words = "noticed" if kinds else "MISSED", "other results" if other else ""
        print(f"{n:5d} {how:8s} {lines[n - 1].strip():36s} {words[0]:7s} {words[1]:13s} {dict(kinds)}", flush=True)
    print(f"noticed {noticed} of {count}, {len(sites(ptx))} places")


if __name__ == "__main__":
    main(*sys.argv[1:])
