"""Small kernels for the tests: a body of PTX, wrapped into what Triton writes around it."""

import numpy as np
import torch

from tests.ptx.launching import Program, launch

HEAD = """//
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry snippet(
{parameters}
)
.reqntid {threads}
{{
\t.reg .pred \t%p<64>;
\t.reg .b16 \t%rs<256>;
\t.reg .b32 \t%r<1024>;
\t.reg .b64 \t%rd<256>;
\t.loc\t1 1 0
// %bb.0:
"""


def text(body, parameters, threads):
    """A kernel whose source lines are those of ``body``; ``parameters`` are types, as "u64"."""
    declared = ",\n".join(f"\t.param .{kind} snippet_param_{n}" for n, kind in enumerate(parameters))
    lines = [HEAD.format(parameters=declared, threads=threads)]
    for number, line in enumerate(body.strip().splitlines(), 1):
        lines += [f"\t.loc\t1 {number} 0", line]
    return "\n".join([*lines, "\tret;", "}", ""])


def run(body, *tensors, threads=32, programs=1, shared=0, batch=None):
    """Launches it; %rd1, %rd2, ... are the tensors' addresses, %r1 is the thread and %r2 the program."""
    start = [f"ld.param.b64 %rd{n + 1}, [snippet_param_{n}];" for n in range(len(tensors))]
    start += ["mov.u32 %r1, %tid.x;", "mov.u32 %r2, %ctaid.x;"]
    ptx = text(" ".join(start) + body, ["u64"] * len(tensors), threads)
    return launch(Program(ptx), shared, programs, list(tensors), batch=batch)


def kinds(reports):
    """What reports say before they name an instruction."""
    return {report.split(":")[0] if report.count(": ") == 1 else report.rsplit(": ", 1)[0] for report in reports}


def tensor(array):
    """Of the same memory; torch knows no arithmetic on most unsigned integers, and none is needed."""
    return torch.from_numpy(array.view(f"i{array.itemsize}"))


REGISTER = {2: "%rs", 4: "%r", 8: "%rd"}


def compute(instruction, *arguments, result):
    """What ``instruction``, with "{d}" and "{a}", "{b}", ... for its operands, makes of arrays, an element a thread:
    done by all threads; predicated, done by the odd ones; and in a branch that the others jump over. The three have to
    agree; where nothing was done, there are the bits 0x5A5A... ``result``: a numpy type, bool for a predicate. What
    stands before a "; " is done once, by all.
    """
    count = len(arguments[0])
    size = -(-count // 32) * 32
    padded = [np.ascontiguousarray(np.resize(x, size)) for x in arguments]
    threads = next(n for n in (256, 128, 64, 32) if size % n == 0)
    result = np.dtype(result)
    logical = result.kind == "b"
    width = 4 if logical else result.itemsize
    outputs = [np.zeros(size, f"u{width}") for _ in range(3)]
    lines = [f"mad.lo.s32 %r3, %r2, {threads}, %r1;", "and.b32 %r4, %r3, 1;", "setp.eq.s32 %p1, %r4, 1;"]
    names = {}
    for n, (letter, array) in enumerate(zip("abc", padded, strict=False)):
        names[letter] = f"{REGISTER[array.itemsize]}{10 + n}"
        lines.append(f"mad.wide.u32 %rd9, %r3, {array.itemsize}, %rd{n + 1};")
        lines.append(f"ld.global.b{8 * array.itemsize} {{ {names[letter]} }}, [ %rd9 + 0 ];")
    to = [f"%p{20 + n}" if logical else f"{REGISTER[width]}{20 + n}" for n in range(3)]
    initial = "-1" if logical else hex(0x5A5A5A5A5A5A5A5A & (1 << 8 * width) - 1)
    for name in to:
        lines.append(f"mov.{'pred' if logical else f'b{8 * width}'} {name}, {initial};")
    *before, last = instruction.split("; ")
    lines += [f"{line.format(**names)};" for line in before]
    one, two, three = (last.format(d=name, **names) for name in to)
    lines += [f"{one};", f"@%p1 {two};", "@!%p1 bra $L__BB0_2;", f"{three};", "$L__BB0_2:"]
    for n, name in enumerate(to):
        if logical:
            lines.append(f"selp.b32 %r{30 + n}, 1, 0, {name};")
            name = f"%r{30 + n}"
        lines.append(f"mad.wide.u32 %rd9, %r3, {width}, %rd{len(padded) + n + 1};")
        lines.append(f"st.global.b{8 * width} [ %rd9 + 0 ], {{ {name} }};")
    tensors = [tensor(x) for x in [*padded, *outputs]]
    reports = run("\n".join(["", *lines]), *tensors, threads=threads, programs=size // threads)
    assert not reports, reports
    whole, *partial = (x[:count] for x in outputs)
    untouched = np.array(1 if logical else int(initial, 16), f"u{width}")
    odd = np.arange(count) % 2 == 1
    for part in partial:
        assert (part[odd] == whole[odd]).all() and (part[~odd] == untouched).all(), instruction
    return whole.astype(bool) if logical else whole.view(result)
