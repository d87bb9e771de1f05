"""What is not ordered is noticed, and what is ordered is not: small kernels, right and with one fault planted."""

import numpy as np
import pytest
import torch

from tests.ptx import races
from tests.ptx.snippets import kinds, run, tensor

READ = "RACE: shared read after a write with no barrier between"
WRITE = "RACE: two shared writes with no barrier between"
OVERWRITTEN = "RACE: shared write after a read with no barrier between"

EXCHANGE = """
    shl.b32 %r8, %r1, 2;
    xor.b32 %r9, %r8, {partner};
    st.shared.b32 [%r8], %r1;
    {first}
    ld.shared.b32 %r4, [%r9];
    {second}
    st.shared.b32 [%r8], %r4;
"""


def exchange(first, second, partner=128, threads=64, **options):
    body = EXCHANGE.format(first=first, second=second, partner=partner)
    return kinds(run(body, threads=threads, shared=4 * threads, **options))


@pytest.mark.parametrize("programs", [1, 5])
def test_a_barrier_that_is_missing(programs):
    """Between a write and another thread's read, and between that and the next write."""
    assert exchange("bar.sync 0;", "bar.sync 0;", programs=programs) == set()
    assert exchange("", "bar.sync 0;", programs=programs) == {READ}
    assert exchange("bar.sync 0;", "", programs=programs) == {OVERWRITTEN}
    assert exchange("bar.sync 0;", "", partner=0, programs=programs) == set()  # each thread its own


def test_a_barrier_of_warps_orders_their_lanes_alone():
    near = {"partner": 4}
    assert exchange("bar.warp.sync -1;", "bar.warp.sync -1;", **near) == set()
    assert exchange("", "bar.warp.sync -1;", **near) == {READ}
    assert exchange("bar.warp.sync -1;", "", **near) == {OVERWRITTEN}
    assert exchange("bar.warp.sync -1;", "bar.sync 0;") == {READ}
    assert exchange("bar.sync 0;", "bar.warp.sync -1;") == {OVERWRITTEN}
    assert exchange("bar.sync 0;", "bar.sync 0;", **near) == set()


def test_a_barrier_of_a_part_of_a_warp():
    with pytest.raises(NotImplementedError, match="bar.warp.sync 15"):
        exchange("bar.warp.sync 15;", "bar.warp.sync -1;")
    half = "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra $L__BB0_1;\nbar.warp.sync -1;\n$L__BB0_1:"
    assert exchange(half, "bar.sync 0;", partner=64, threads=32) == {
        "warp-collective instruction with lanes missing", READ
    }  # fmt: skip


def test_a_barrier_that_some_warps_pass_by():
    """Warp 1 comes to its barrier later, by a way of its own; both are the same barrier."""
    branch = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra $L__BB0_{0};\nmov.b32 %r20, 1;\n$L__BB0_{0}:\n{1}"
    assert exchange(branch.format(1, "bar.sync 0;"), branch.format(2, "bar.sync 0;")) == set()
    assert exchange(branch.format(1, ""), branch.format(2, "bar.sync 0;")) == {READ}


def test_two_writers():
    body = "and.b32 %r8, %r1, 31;\nshl.b32 %r8, %r8, 2;\nsetp.lt.u32 %p1, %r1, 32;\n"
    body += "@%p1 st.shared.b32 [%r8], %r1;\n{}\n@!%p1 st.shared.b32 [%r8], %r1;"
    assert kinds(run(body.format("bar.sync 0;"), threads=64, shared=128)) == set()
    assert kinds(run(body.format(""), threads=64, shared=128)) == {WRITE}


@pytest.mark.parametrize("writer", [0, 3, 63])
def test_readers_do_not_disturb_each_other(writer):
    """All threads read what one has written; then one of them may not overwrite it, as the others may be late."""
    body = f"setp.eq.s32 %p1, %r1, {writer};\nmov.b32 %r8, 0;\n@%p1 st.shared.b32 [%r8], %r1;\nbar.sync 0;\n"
    body += "ld.shared.b32 %r4, [%r8];\nld.shared.b32 %r5, [%r8];\n{}\n@%p1 st.shared.b32 [%r8], %r4;"
    assert kinds(run(body.format("bar.sync 0;"), threads=64, shared=16)) == set()
    assert kinds(run(body.format(""), threads=64, shared=16)) == {OVERWRITTEN}


@pytest.mark.parametrize("store", ["b8", "b16", "b32", "v2.b32", "v4.b32"])
@pytest.mark.parametrize("load", ["b8", "b16", "b32", "v2.b32", "v4.b32"])
def test_accesses_of_different_widths(store, load):
    """Thread 0 writes at an address, thread 40 reads near it: a race where they overlap and nowhere else."""
    size = {"b8": 1, "b16": 2, "b32": 4, "v2.b32": 8, "v4.b32": 16}
    registers = {"v2.b32": "{%r4, %r5}", "v4.b32": "{%r4, %r5, %r6, %r7}", "b32": "%r4"}
    for at in {0, 16, 16 + size[load], 16 + size[store], 12 // size[load] * size[load]}:
        if at % size[load]:
            continue
        found = kinds(run(f"""
            shl.b32 %r8, %r1, 4;
            mov.b32 %r4, 0;
            mov.b32 %r5, 0;
            mov.b32 %r6, 0;
            mov.b32 %r7, 0;
            mov.b16 %rs4, 0;
            st.shared.v4.b32 [%r8], {{%r4, %r5, %r6, %r7}};
            bar.sync 0;
            setp.eq.s32 %p1, %r1, 0;
            setp.eq.s32 %p2, %r1, 40;
            mov.b32 %r8, 16;
            @%p1 st.shared.{store} [%r8], {registers.get(store, "%rs4")};
            mov.b32 %r8, {at};
            @%p2 ld.shared.{load} {registers.get(load, "%rs4")}, [%r8];
        """, threads=64, shared=1024))  # fmt: skip
        overlap = at < 16 + size[store] and at + size[load] > 16
        assert found == ({READ} if overlap else set()), at


# ---- cp.async ----

COPY = """
    shl.b32 %r8, %r1, 4;
    mad.wide.u32 %rd9, %r1, 16, %rd1;
    cp.async.cg.shared.global [ %r8 + 0 ], [ %rd9 + 0 ], 0x10, 16;
    cp.async.commit_group;
    cp.async.cg.shared.global [ %r8 + 1024 ], [ %rd9 + 1024 ], 0x10, %r20;
    cp.async.commit_group;
    {wait}
    {barrier}
    xor.b32 %r8, %r8, {partner};
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r8+{stage}];
    mad.wide.u32 %rd9, %r1, 16, %rd2;
    st.global.v4.b32 [ %rd9 + 0 ], {{%r4, %r5, %r6, %r7}};
"""


def copied(wait, barrier="bar.sync 0;", stage=0, partner=512, size=16):
    data, out = np.arange(512, dtype="u4"), np.zeros(256, "u4")
    body = f"mov.b32 %r20, {size};\n" + COPY.format(wait=wait, barrier=barrier, stage=stage, partner=partner)
    found = kinds(run(body, tensor(data), tensor(out), threads=64, shared=2048))
    expected = data.reshape(2, 64, 4)[stage // 1024][np.arange(64) ^ partner // 16].reshape(-1)
    return found, (out == (expected if size or not stage else 0)).all()


def test_asynchronous_copies():
    late, never = "shared read of what cp.async has not yet delivered", "cp.async that nothing waits for"
    assert copied("cp.async.wait_group 1;") == ({never}, True)
    assert copied("cp.async.wait_group 0;", stage=1024) == (set(), True)
    assert copied("cp.async.wait_all;", stage=1024) == (set(), True)
    assert copied("cp.async.wait_group 0;", stage=1024, size=0) == (set(), True)  # zeros instead
    # Planted: a wait that is weaker, or none, or no barrier behind it.
    assert copied("cp.async.wait_group 1;", stage=1024) == ({late, never}, False)
    assert copied("cp.async.wait_group 2;") == ({late, never}, False)
    assert copied("") == ({late, never}, False)
    assert copied("cp.async.wait_group 0;", barrier="") == ({READ}, True)
    assert copied("cp.async.wait_group 0;", barrier="", partner=0) == (set(), True)  # one's own is there after the wait
    assert copied("setp.lt.u32 %p1, %r1, 63;\n@%p1 cp.async.wait_group 0;")[0] == {late, never}


def test_what_a_copy_is_about_to_overwrite():
    body = """
        shl.b32 %r8, %r1, 4;
        mad.wide.u32 %rd9, %r1, 16, %rd1;
        st.shared.b32 [%r8], %r1;
        bar.sync 0;
        xor.b32 %r9, %r8, 512;
        ld.shared.b32 %r4, [%r9];
        {}
        cp.async.cg.shared.global [ %r8 + 0 ], [ %rd9 + 0 ], 0x10, 16;
        {}
        cp.async.wait_all;
    """
    x = torch.zeros(256, dtype=torch.int32)
    assert not run(body.format("bar.sync 0;", ""), x, threads=64, shared=1024)
    assert kinds(run(body.format("", ""), x, threads=64, shared=1024)) == {OVERWRITTEN}
    found = kinds(run(body.format("bar.sync 0;", "st.shared.b32 [%r8], %r1;"), x, threads=64, shared=1024))
    assert found == {"shared write of what cp.async has not yet delivered"}


# ---- Programs ----

BETWEEN = """
    mad.lo.s32 %r3, %r2, 32, %r1;
    mad.wide.u32 %rd9, %r3, 4, %rd1;
    mad.wide.u32 %rd10, %r3, 4, %rd2;
    ld.global.b32 %r4, [ %rd9 + {load} ];
    st.global.b32 [ %rd{to} + {store} ], %r4;
"""


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("enough", [races.Global.ENOUGH, 40])  # reads that are judged at the end, and before
def test_between_programs(batch, enough, monkeypatch):
    monkeypatch.setattr(races.Global, "ENOUGH", enough)

    def found(load=0, store=0, to=10):
        x, y = torch.zeros(160, dtype=torch.int32), torch.zeros(160, dtype=torch.int32)
        body = BETWEEN.format(load=load, store=store, to=to)
        return kinds(run(body, x, y, programs=4, batch=batch))

    one_way, other_way = "global read of what another program writes", "global write of what another program reads"
    assert found() == found(load=8) == found(to=9) == set()
    # Lanes read a bit of what the next program writes, or the previous one.
    assert found(load=4, to=9) <= {one_way, other_way} and found(load=4, to=9)
    assert found(store=4, to=9) <= {one_way, other_way} and found(store=4, to=9)
    # The programs' parts overlap.
    x = torch.zeros(160, dtype=torch.int32)
    body = BETWEEN.format(load=0, store=0, to=10).replace("%r2, 32", "%r2, 31")
    assert "global write where another program writes" in kinds(run(body, x, x.clone(), programs=4, batch=batch))


def test_atomic_operations_of_several_programs():
    x = torch.zeros(64, dtype=torch.int32)
    add = "mad.wide.u32 %rd9, %r1, 4, %rd1;\nred.global.gpu.relaxed.add.u32 [ %rd9 + 0 ], 1;"
    assert kinds(run(add, x, programs=4)) == set() and (x[:32] == 4).all()
    setup = "setp.eq.s32 %p1, %r2, 2;\nmad.wide.u32 %rd9, %r1, 4, %rd1;\n"
    write = "@%p1 st.global.b32 [ %rd9 + 0 ], %r1;"
    read = "@%p1 ld.global.b32 %r4, [ %rd9 + 0 ];"
    assert kinds(run(f"{setup}{add}\n{read}", x, programs=4)) == {"global read of what another program writes"}
    for body in (f"{setup}{add}\n{write}", f"{setup}{write}\n{add}"):
        found = kinds(run(body, x, programs=4, batch=1))
        assert found <= {"global write where another program has an atomic operation",
                         "atomic operation where another program writes"} and found  # fmt: skip
