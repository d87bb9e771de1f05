"""Control flow: who runs what, where threads meet again, and barriers."""

import numpy as np
import pytest

from tests.ptx.launching import Program
from tests.ptx.snippets import run, tensor, text

STORE = "mad.wide.u32 %rd9, %r3, 4, %rd1;\nst.global.b32 [ %rd9 + 0 ], { %r4 };"


@pytest.mark.parametrize(("programs", "batch"), [(1, 1), (5, 2), (5, 8), (40, None)])
def test_every_thread_of_every_program_runs_once(programs, batch):
    out = np.zeros(programs * 96, "u4")
    reports = run(f"""
        mov.u32 %r5, %nctaid.x;
        mov.u32 %r6, %ntid.x;
        mad.lo.s32 %r3, %r2, %r6, %r1;
        mad.lo.s32 %r4, %r5, 1000, %r3;
        {STORE}
    """, tensor(out), threads=96, programs=programs, batch=batch)  # fmt: skip
    assert not reports
    assert (out == 1000 * programs + np.arange(len(out))).all()


@pytest.mark.parametrize("by", ["%r1", "%r2", "%r6"])  # each thread, program, warp its own number of rounds
def test_loops_that_end_at_different_times(by):
    """The sum of 1 to n by a loop; then all meet: the shuffle's lanes are all there."""
    out = np.zeros(4 * 64, "u4")
    reports = run(f"""
        shr.u32 %r6, %r1, 5;
        mad.lo.s32 %r3, %r2, 64, %r1;
        mov.b32 %r4, 0;
        mov.b32 %r5, {by};
        $L__BB0_1:
        add.s32 %r4, %r4, %r5;
        add.s32 %r5, %r5, -1;
        setp.gt.s32 %p1, %r5, 0;
        @%p1 bra $L__BB0_1;
        shfl.sync.bfly.b32 %r4, %r4, 0, 31, -1;
        {STORE}
    """, tensor(out), threads=64, programs=4)  # fmt: skip
    assert not reports
    thread, program = np.tile(np.arange(64), 4), np.repeat(np.arange(4), 64)
    n = np.maximum({"%r1": thread, "%r2": program, "%r6": thread // 32}[by], 0)
    assert (out == np.where(n > 0, n * (n + 1) // 2, 0)).all()


def test_registers_survive_branches_that_others_take():
    """Uniform values (scalars inside the executor), values of some warps and of some lanes, across nested branches."""
    out = np.zeros(128, "u4")
    reports = run(f"""
        mov.u32 %r3, %r1;
        mov.b32 %r4, 7;
        setp.lt.u32 %p1, %r1, 64;
        @%p1 bra $L__BB0_1;
        mov.b32 %r4, 100;
        setp.lt.u32 %p2, %r1, 70;
        @!%p2 bra $L__BB0_1;
        add.s32 %r4, %r4, %r1;
        $L__BB0_1:
        add.s32 %r4, %r4, 1;
        {STORE}
    """, tensor(out), threads=128)  # fmt: skip
    assert not reports
    n = np.arange(128)
    assert (out == np.where(n < 64, 8, np.where(n < 70, 101 + n, 101))).all()


def test_threads_that_leave_early_are_not_waited_for():
    out = np.zeros(64, "u4")
    reports = run(f"""
        mov.u32 %r3, %r1;
        mov.b32 %r4, 1;
        setp.ge.u32 %p1, %r1, 40;
        @%p1 bra $L__BB0_2;
        bar.sync 0;
        mov.b32 %r4, 2;
        {STORE}
        ret;
        $L__BB0_2:
        {STORE}
    """, tensor(out), threads=64)  # fmt: skip
    assert not reports
    assert (out == np.where(np.arange(64) < 40, 2, 1)).all()


@pytest.mark.parametrize("programs", [1, 3])
def test_a_barrier_holds_those_who_come_first(programs):
    """Half of the threads write what the others read behind a barrier that each half comes to by its own way."""
    out = np.zeros(64 * programs, "u4")
    reports = run(f"""
        mad.lo.s32 %r3, %r2, 64, %r1;
        shl.b32 %r8, %r1, 2;
        setp.lt.u32 %p1, %r1, 32;
        @%p1 bra $L__BB0_1;
        st.shared.b32 [%r8], %r3;
        $L__BB0_1:
        bar.sync 0;
        xor.b32 %r8, %r8, 128;
        mov.b32 %r4, 5;
        @%p1 ld.shared.b32 %r4, [%r8];
        {STORE}
    """, tensor(out), threads=64, programs=programs, shared=256)  # fmt: skip
    assert not reports
    thread, program = np.tile(np.arange(64), programs), np.repeat(np.arange(programs), 64)
    assert (out == np.where(thread < 32, 64 * program + thread + 32, 5)).all()


def test_a_register_that_nothing_has_written_shows():
    out = np.zeros(32, "u4")
    run("mov.u32 %r3, %r1;\nadd.f32 %r4, %r77, 0f3F800000;\n" + STORE, tensor(out))
    assert np.isnan(out.view("f4")).all()


@pytest.mark.parametrize("line", ["bar.sync 1;", "bar.sync 0, 64;", "bar.arrive 0, 64;", "call foo;", "membar.gl;",
                                  "@%p1 ret;", "@%p1 bar.sync 0;", "trap;", "brx.idx %r1, table;"])  # fmt: skip
def test_other_control_is_refused(line):
    with pytest.raises(NotImplementedError):
        Program(text(line, [], 32))
