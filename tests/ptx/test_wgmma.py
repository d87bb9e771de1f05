"""wgmma: operands in all layouts against einsum, and what has to be waited for and fenced."""

import numpy as np
import pytest
import torch

from tests.ptx.snippets import kinds, run, tensor
from tests.ptx.test_matrix import a_places, fragment, halves

MODES = {16: 0, 128: 1, 64: 2, 32: 3}  # bytes of a swizzle to its number in a descriptor


def image(matrix, swizzle, transposed):
    """How a matrix (rows, k) of 16-bit numbers lies in shared memory, and the descriptor of its first 16 columns, its
    start left out: atoms of 8 lines of ``swizzle`` bytes, each line's 16-byte columns exchanged by the line's number.
    Lines go along k, or with ``transposed`` along rows.
    """
    lines = matrix.T if transposed else matrix
    count, length = lines.shape[0] // 8, 2 * lines.shape[1] // swizzle  # atoms down, across
    memory = np.zeros((length, count, 8, swizzle // 16, 8), "u2")
    for line in range(lines.shape[0]):
        row = line % 8
        exchange = {16: 0, 32: row // 4, 64: row // 2, 128: row}[swizzle]
        for column in range(2 * lines.shape[1] // 16):
            across, within = divmod(column, swizzle // 16)
            memory[across, line // 8, row, within ^ exchange] = lines[line, 8 * column : 8 * column + 8]
    down, across = 8 * swizzle, 8 * swizzle * count
    if swizzle == 16:
        leading, stride = (down, across) if transposed else (across, down)
    else:
        leading, stride = across, down
    return memory.reshape(-1), MODES[swizzle] << 62 | stride >> 4 << 32 | leading >> 4 << 16


def registers(first, count):
    return "{" + ", ".join(f"%r{first + n}" for n in range(count)) + "}"


def product(kind, n, swizzles, transposed, in_registers, steps):
    """D = C + A B over ``steps`` times 16 of k, by two warpgroups with their own A and the same B."""
    k = 16 * steps
    bits_a, a = halves(kind, 2, 64, k)
    bits_b, b = halves(kind, n, k)
    c = np.random.default_rng(5).normal(size=(2, 64, n)).astype("f4")
    images = [image(x, swizzles[0], transposed[0]) for x in bits_a] + [image(bits_b, swizzles[1], transposed[1])]
    starts, end, memory = [], 0, np.zeros(0, "u2")
    for part, _ in images:
        end = -(-len(memory) // 512) * 512  # of 1024 bytes, as swizzles want it
        memory = np.concatenate([memory, np.zeros(end - len(memory), "u2"), part])
        starts.append(2 * end)
    memory = np.concatenate([memory, np.zeros(-len(memory) % 2048, "u2")])

    def offset(index, number):
        """Where columns 16 * number begin: within a line, or where lines go along rows, two atoms of 8 lines on."""
        swizzle = swizzles[index // 2]
        if transposed[index // 2]:
            return number * 2 * 8 * swizzle
        atoms, within = divmod(32 * number, swizzle)
        return atoms * swizzle * (64 if index < 2 else n) + within

    body = ["mul.lo.s32 %r5, %r1, 16;"]
    for at in range(0, 2 * len(memory), 4096):
        body += ["cvt.u64.u32 %rd9, %r5;", "add.s64 %rd9, %rd1, %rd9;",
                 f"ld.global.v4.b32 {registers(10, 4)}, [ %rd9 + {at} ];",
                 f"st.shared.v4.b32 [%r5+{at}], {registers(10, 4)};"]  # fmt: skip
    body += ["fence.proxy.async.shared::cta;", "bar.sync 0;", "shr.u32 %r6, %r1, 7;", "setp.eq.s32 %p1, %r6, 1;",
             "mov.pred %p2, -1;",
             f"mul.lo.s32 %r7, %r1, {2 * n};", "cvt.u64.u32 %rd9, %r7;", "add.s64 %rd10, %rd2, %rd9;",
             f"mul.lo.s32 %r7, %r1, {16 * steps};", "cvt.u64.u32 %rd9, %r7;", "add.s64 %rd11, %rd3, %rd9;"]  # fmt: skip
    body += [f"ld.global.b32 %r{100 + r}, [ %rd10 + {4 * r} ];" for r in range(n // 2)]
    body += [f"ld.global.b32 %r{20 + r}, [ %rd11 + {4 * r} ];" for r in range(4 * steps)]
    body += ["wgmma.fence.sync.aligned;"]
    for number in range(steps):
        descriptors = [(start + offset(i, number)) >> 4 | fixed
                       for i, (start, (_, fixed)) in enumerate(zip(starts, images, strict=True))]  # fmt: skip
        body += [f"mov.b64 %rd2{i}, {value};" for i, value in enumerate(descriptors)]
        body += ["selp.b64 %rd23, %rd21, %rd20, %p1;"]
        first = registers(20 + 4 * number, 4) if in_registers else "%rd23"
        flags = f"{int(transposed[1])}" if in_registers else f"{int(transposed[0])}, {int(transposed[1])}"
        body.append(f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {registers(100, n // 2)}, {first}, "
                    f"%rd22, %p2, 1, 1, {flags};")  # fmt: skip
    body += ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]
    body += [f"st.global.b32 [ %rd10 + {4 * r} ], %r{100 + r};" for r in range(n // 2)]
    # Warp w of a group has rows 16 w to 16 w + 15, in the fragments of mma.sync.
    thread = np.arange(128)
    rows = 16 * (thread // 32) + thread % 32 // 4
    d = np.stack([c[:, rows + 8 * (r // 2 % 2), 8 * (r // 4) + thread % 4 * 2 + r % 2] for r in range(n // 2)], -1)
    d = np.ascontiguousarray(d.reshape(256, -1))
    tiles = bits_a.reshape(2, 4, 16, steps, 16).transpose(0, 1, 3, 2, 4)  # group, warp, step, row, k
    given = np.array([[[fragment(x, a_places()) for x in warp] for warp in group] for group in tiles])
    given = np.ascontiguousarray(given.transpose(0, 1, 3, 2, 4).reshape(256, 4 * steps))
    reports = run("\n".join(body), tensor(memory), tensor(d), tensor(given), threads=256, shared=2 * len(memory))
    assert not reports, reports
    exact = c + np.einsum("gik,nk->gin", a, b)
    found = np.zeros_like(exact)
    for r in range(n // 2):
        found[:, rows + 8 * (r // 2 % 2), 8 * (r // 4) + thread % 4 * 2 + r % 2] = d.reshape(2, 128, -1)[:, :, r]
    assert np.abs(found - exact).max() < 1e-5 * steps * np.abs(exact).max()


@pytest.mark.parametrize("swizzle", [16, 32, 64, 128])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_operands_in_shared_memory(swizzle, transposed):
    product("bf16", 64, (swizzle, swizzle), transposed, False, 4)


@pytest.mark.parametrize("swizzle", [16, 32, 64, 128])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_in_registers(swizzle, transposed):
    product("f16", 64, (128, swizzle), (False, transposed), True, 4)


@pytest.mark.parametrize("n", [8, 24, 128, 256])
def test_widths_of_the_result(n):
    product("f16", n, (128, 128), (False, False), False, 4)


# Without a swizzle: from one group of 8 rows to the next 128 bytes, to the next 8 columns 1024. 2048 bytes of A.
FIRST = 128 >> 4 << 32 | 1024 >> 4 << 16
SECOND = FIRST | 2048 >> 4
FAULTS = """
    mov.b32 %r4, 0;
    shl.b32 %r5, %r1, 4;
    {store}st.shared.v4.b32 [%r5], {{%r4, %r4, %r4, %r4}};
    st.shared.v4.b32 [%r5+2048], {{%r4, %r4, %r4, %r4}};
    {fence}
    {barrier}
    mov.b64 %rd20, {first};
    mov.b64 %rd21, {second};
    mov.pred %p1, 0;
    {guard}
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%r20, %r21, %r22, %r23}}, %rd20, %rd21, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    {between}
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%r24, %r25, %r26, %r27}}, %rd21, %rd21, 0, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    {wait}
    {after}
    wgmma.wait_group.sync.aligned 0;
"""
STORE = "st.shared.v4.b32 [%r5], {%r4, %r4, %r4, %r4};"


def faults(fence="fence.proxy.async.shared::cta;", barrier="bar.sync 0;", guard="", between="", store="",
           wait="wgmma.wait_group.sync.aligned 1;", after="bar.sync 0;\n" + STORE, shared=4096, x=None,
           second=SECOND):  # fmt: skip
    """What is wrong with a kernel whose first wgmma reads bytes 0 to 2047, the second one 2048 to 4095, of which the
    first are overwritten at the end.
    """
    body = FAULTS.format(fence=fence, barrier=barrier, guard=guard, between=between, wait=wait, after=after,
                         store=store, first=FIRST, second=second)  # fmt: skip
    return kinds(run(body, *([] if x is None else [x]), threads=128, shared=shared))


def test_what_has_to_be_ordered():
    unfenced = "wgmma reads generic writes without fence.proxy.async"
    unfinished = "RACE: shared write of what an unfinished wgmma reads"
    assert faults() == set()
    assert faults(fence="") == {unfenced}
    assert faults(fence="", barrier="bar.sync 0;\nfence.proxy.async.shared::cta;") == set()  # what the barrier ordered
    some = "setp.lt.u32 %p3, %r1, 64;\n@%p3 fence.proxy.async.shared::cta;"
    assert faults(fence=some) == {unfenced}  # each thread its own writes
    assert faults(fence="", barrier="bar.sync 0;\n" + some) == {unfenced}  # the others multiply without one
    again = "fence.proxy.async.shared::cta;\nbar.sync 0;\n" + STORE + "\nbar.sync 0;"
    assert faults(fence="", barrier=again) == {unfenced}
    race = "RACE: wgmma reads what was written with no barrier since"
    assert faults(barrier="") == {race}
    assert faults(wait="") == {unfinished}
    assert faults(wait="wgmma.wait_group.sync.aligned 2;") == {unfinished}
    assert faults(wait="wgmma.wait_group.sync.aligned 0;") == set()
    assert faults(after="bar.sync 0;\n" + STORE.replace("%r5", "%r5+2048")) == {unfinished}  # of the second one
    assert faults(after=STORE) == {"RACE: shared write after a read with no barrier between"}


def test_what_has_to_be_there():
    some = "setp.lt.u32 %p2, %r1, 100;\n@%p2 "
    assert faults(store=some) == {"wgmma reads shared memory that nothing has written"}
    x = torch.zeros(1024, dtype=torch.int32)
    copy = "mad.wide.u32 %rd9, %r1, 16, %rd1;\ncp.async.cg.shared.global [ %r5 + 0 ], [ %rd9 + 0 ], 0x10, 16;"
    copy += "\ncp.async.commit_group;\n{}fence.proxy.async.shared::cta;\nbar.sync 0;"
    waited = copy.format("cp.async.wait_group 0;\n")
    barrier = "bar.sync 0;\n"
    assert faults(barrier=barrier + waited, x=x) == set()
    assert "wgmma reads what cp.async has not yet delivered" in faults(barrier=barrier + copy.format(""), x=x)
    unfenced = barrier + waited.replace("fence.proxy.async.shared::cta;\n", "")
    assert faults(barrier=unfenced, x=x) == {"wgmma reads what cp.async wrote without fence.proxy.async"}
    assert faults(shared=4080) == {"shared store outside the program's 4080 bytes"}
    assert faults(second=SECOND + 1) == {"wgmma operand outside the program's 4096 bytes"}


def test_results_that_are_looked_at_too_early():
    used = "result of wgmma used before it is there"
    operand = "operand of wgmma that is the result of an unfinished one"
    first, second = "mov.b32 %r30, %r20;", "mov.b32 %r30, %r24;"
    assert faults(after=first) == set()  # the wait before it leaves one group, the second
    assert faults(after=second) == {used}
    assert faults(between=first) == {used}
    assert faults(between="mov.b32 %r20, 0;") == {used}  # overwritten
    assert faults(wait="", after=first) == {used}
    assert faults(wait="wgmma.wait_group.sync.aligned 2;", after=first) == {used}
    in_a = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r30, %r31, %r32, %r33}, {%r20, %r21, %r22, %r23}, "
    in_a += "%rd21, 0, 1, 1, 0;\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;"
    assert faults(between=in_a) == {operand}
    # On one of two ways only.
    branch = "setp.lt.u32 %p3, %r1, 128;\n@%p3 bra $L__BB0_1;\nwgmma.wait_group.sync.aligned 0;\n$L__BB0_1:\n"
    assert faults(wait=branch, after=first) == {used}


def test_operands_in_registers_that_are_overwritten_too_early():
    overwritten = "register that an unfinished wgmma reads is overwritten"
    given = "mov.b32 %r40, 0;\nmov.b32 %r41, 0;\nmov.b32 %r42, 0;\nmov.b32 %r43, 0;\n"
    given += "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r30, %r31, %r32, %r33}, {%r40, %r41, %r42, %r43}, "
    given += "%rd21, 0, 1, 1, 0;\nwgmma.commit_group.sync.aligned;\n"
    assert faults(between=given + "mov.b32 %r44, %r40;") == set()  # read, which disturbs nobody
    assert faults(between=given + "mov.b32 %r40, 0;") == {overwritten}
    assert faults(between=given + "wgmma.wait_group.sync.aligned 1;\nmov.b32 %r40, 0;") == {overwritten}
    assert faults(between=given + "wgmma.wait_group.sync.aligned 0;\nmov.b32 %r40, 0;") == set()
    into = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r40, %r41, %r42, %r43}, %rd21, %rd21, 0, 1, 1, 0, 0;"
    assert faults(between=given + into) == {overwritten}


def test_threads_that_are_missing():
    for part in (96, 100):
        guard = f"setp.ge.u32 %p2, %r1, {part};\n@%p2 bra $L__BB0_9;"
        assert faults(guard=guard, after="$L__BB0_9:") == {"wgmma with threads missing"}
