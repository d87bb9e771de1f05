"""Global and shared memory: widths, what may be accessed, and what is reported where it may not."""

import numpy as np
import pytest
import torch

from tests.ptx.launching import Program, launch
from tests.ptx.snippets import kinds, run, tensor, text

RANDOM = np.random.default_rng(2)
WIDTHS = [("b8", 1, 1), ("b16", 2, 1), ("b32", 4, 1), ("b64", 8, 1), ("v2.b32", 4, 2), ("v4.b32", 4, 4),
          ("v2.b64", 8, 2), ("v4.b16", 2, 4)]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "count"), WIDTHS)
@pytest.mark.parametrize("masked", ["", "@%p1 "])
def test_a_copy_by_way_of_shared_memory(name, size, count, masked):
    """Global to registers to shared memory to registers to global, all threads or some of them."""
    data = RANDOM.integers(0, 256, 64 * size * count).astype("u1")
    out = np.zeros_like(data)
    bank = {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}[size]
    names = ", ".join(f"{bank}{40 + n}" for n in range(count))
    others = ", ".join(f"{bank}{50 + n}" for n in range(count))
    reports = run(f"""
        setp.lt.u32 %p1, %r1, 37;
        mul.lo.s32 %r8, %r1, {size * count};
        cvt.u64.u32 %rd9, %r8;
        add.s64 %rd10, %rd1, %rd9;
        add.s64 %rd11, %rd2, %rd9;
        {masked}ld.global.{name} {{ {names} }}, [ %rd10 + 0 ];
        {masked}st.shared.{name} [%r8], {{ {names} }};
        bar.sync 0;
        {masked}ld.shared.{name} {{ {others} }}, [%r8];
        {masked}st.global.{name} [ %rd11 + 0 ], {{ {others} }};
    """, tensor(data), tensor(out), threads=64, shared=64 * size * count)  # fmt: skip
    assert not reports
    active = 37 if masked else 64
    assert (out[: active * size * count] == data[: active * size * count]).all()
    assert (out[active * size * count :] == 0).all()


def test_narrow_loads_fill_their_register():
    data = np.array([0x80, 0x7F, 0xFF, 1] * 8, "u1")
    out = np.zeros((2, 32), "u4")
    assert not run("""
        cvt.u64.u32 %rd9, %r1;
        add.s64 %rd10, %rd1, %rd9;
        ld.global.s8 %r4, [ %rd10 + 0 ];
        ld.global.u8 %r5, [ %rd10 + 0 ];
        mad.wide.u32 %rd9, %r1, 4, %rd2;
        st.global.b32 [ %rd9 + 0 ], { %r4 };
        st.global.b32 [ %rd9 + 128 ], { %r5 };
    """, tensor(data), tensor(out))  # fmt: skip
    assert (out[0].view("i4") == data.view("i1")).all() and (out[1] == data).all()


def test_parameters():
    out = np.zeros(4, "u8")
    ptx = text("""
        ld.param.b64 %rd1, [snippet_param_0];
        ld.param.b32 %r1, [snippet_param_1];
        ld.param.s32 %rd2, [snippet_param_1];
        ld.param.b32 %r2, [snippet_param_2];
        ld.param.b64 %rd3, [snippet_param_3];
        cvt.u64.u32 %rd4, %r1;
        cvt.u64.u32 %rd5, %r2;
        st.global.v2.b64 [ %rd1 + 0 ], { %rd4, %rd2 };
        st.global.v2.b64 [ %rd1 + 16 ], { %rd5, %rd3 };
    """, ["u64", "u32", "f32", "u64", "u64"], 32)  # fmt: skip
    reports = launch(Program(ptx), 0, 1, [tensor(out), -2, 1.5, 2**40 + 1])  # the last one, scratch, is left out
    assert not reports
    assert out.tolist() == [2**32 - 2, 2**64 - 2, int(np.float32(1.5).view("u4")), 2**40 + 1]
    with pytest.raises(TypeError, match="takes 5 arguments, not 2"):
        launch(Program(ptx), 0, 1, [tensor(out), 1])


ACCESS = """
    mad.wide.u32 %rd9, %r1, {stride}, %rd1;
    {instruction};
"""


def accesses(instruction, *tensors, stride=4, **options):
    return kinds(run(ACCESS.format(stride=stride, instruction=instruction), *tensors, **options))


def test_an_index_one_too_far():
    """In front of a tensor and behind it, by loads, stores, atomic operations and asynchronous copies."""
    x = torch.zeros(32, dtype=torch.int32)
    names = {"ld.global.b32 %r4, [ %rd9 + {} ]": "load of 4", "st.global.b32 [ %rd9 + {} ], %r1": "store of 4",
             "red.global.gpu.relaxed.add.u32 [ %rd9 + {} ], %r1": "atomic operation of 4"}  # fmt: skip
    for instruction, name in names.items():
        assert accesses(instruction.format(0), x) == set()
        for offset in (4, -4):
            assert accesses(instruction.format(offset), x) == {f"global {name} bytes outside every tensor"}
    assert accesses("ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [ %rd9 + 0 ]", x[:31], threads=32, stride=16) != set()


def test_an_asynchronous_copy_one_too_far():
    x = torch.zeros(128, dtype=torch.int32)
    body = """
        mad.wide.u32 %rd9, %r1, 16, %rd1;
        shl.b32 %r8, %r1, 4;
        cp.async.cg.shared.global [ %r8 + 0 ], [ %rd9 + {} ], 0x10, {};
        cp.async.commit_group;
        cp.async.wait_group 0;
    """
    assert not run(body.format(0, 16), x, shared=512)
    assert kinds(run(body.format(16, 16), x, shared=512)) == {"global cp.async of 16 bytes outside every tensor"}
    assert not run(body.format(16, 0), x, shared=512)  # which fetches nothing


def test_gaps_between_elements():
    """Of a strided view; views of one memory are one."""
    whole = torch.arange(64, dtype=torch.int32)
    view = whole[::2]
    assert accesses("ld.global.b32 %r4, [ %rd9 + 0 ]", view, stride=8) == set()
    assert accesses("ld.global.b32 %r4, [ %rd9 + 0 ]", view) == {"global load of 4 bytes outside every tensor"}
    assert accesses("st.global.b32 [ %rd9 + 4 ], %r1", view, whole[1::2], stride=8) == set()
    assert (whole[1::2] == torch.arange(32)).all() and (whole[::2] == torch.arange(0, 64, 2)).all()


def test_a_tensor_of_no_elements_has_no_memory():
    assert accesses("ld.global.b32 %r4, [ %rd9 + 0 ]", torch.zeros(0)) != set()


def test_what_stops_a_device_stops_here():
    x = torch.zeros(64, dtype=torch.int32)
    after = "\nmov.b32 %r9, 1;\nmad.wide.u32 %rd9, %r1, 4, %rd1;\nst.global.b32 [ %rd9 + 0 ], %r9;"
    faults = {
        "ld.global.b32 %r4, [ %rd9 + 2 ]": "misaligned global load of 4 bytes",
        "st.global.v2.b32 [ %rd9 + 0 ], {%r1, %r2}": "misaligned global store of 8 bytes",
        "ld.global.b32 %r4, [ %rd30 + 0 ]": "global load far from every tensor",
        "ld.shared.b32 %r4, [%r1]": "misaligned shared load of 4 bytes",
        "st.shared.b32 [%r8+4], %r1": "shared store outside the program's 128 bytes",
        "ld.shared.b32 %r4, [%r8+-4]": "shared load outside the program's 128 bytes",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r8]": "misaligned shared ldmatrix of 16 bytes",
        "cp.async.ca.shared.global [ %r8 + 0 ], [ %rd9 + 0 ], 0x8, 8": "misaligned shared cp.async of 8 bytes",
    }
    for instruction, kind in faults.items():
        found = run(ACCESS.format(stride=4, instruction=f"shl.b32 %r8, %r1, 2;\n{instruction}") + after, x, shared=128)
        assert kind in kinds(found) and not x.any(), instruction
        assert any("source line 4" in report and instruction.split(" ")[0] in report for report in found), found


def test_shared_memory_that_nothing_has_written():
    body = """
        shl.b32 %r8, %r1, 2;
        setp.lt.u32 %p1, %r1, {};
        @%p1 st.shared.b32 [%r8], %r1;
        bar.sync 0;
        ld.shared.b32 %r4, [%r8];
    """
    assert not run(body.format(32), shared=128)
    assert kinds(run(body.format(31), shared=128)) == {"shared memory read that nothing has written"}
    assert kinds(run(body.format(0), shared=128, programs=2)) == {"shared memory read that nothing has written"}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("apart", [1, 2**20])
def test_lanes_that_write_different_values_to_one_address(space, apart):
    """However near to each other; the same value is no fault."""
    x = torch.zeros(64, dtype=torch.int32)
    to = "[ %rd9 + 0 ]" if space == "global" else "[%r8]"
    body = f"""
        and.b32 %r3, %r1, 15;
        shl.b32 %r8, %r3, 2;
        mad.wide.u32 %rd9, %r3, 4, %rd1;
        mad.lo.s32 %r4, %r3, 77, 1065353216;
        setp.eq.s32 %p1, %r1, 19;
        @%p1 add.s32 %r4, %r4, {{}};
        st.{space}.b32 {to}, %r4;
    """  # fmt: skip
    assert not run(body.format(0), x, shared=64)
    assert kinds(run(body.format(apart), x, shared=64)) == {
        f"RACE: lanes write different values to one {space} address in one instruction"
    }


def test_atomic_additions_give_what_was_there_before():
    """In some order of the lanes: of each place, the differences between what they saw are what was added."""
    x, old = np.zeros(8, "u8"), np.zeros(256, "u8")
    x += np.uint64(2**63)
    assert not run("""
        mad.lo.s32 %r3, %r2, 64, %r1;
        and.b32 %r4, %r1, 7;
        mad.wide.u32 %rd9, %r4, 8, %rd1;
        cvt.u64.u32 %rd10, %r3;
        atom.global.gpu.relaxed.add.u64 %rd11, [ %rd9 + 0 ], %rd10;
        mad.wide.u32 %rd9, %r3, 8, %rd2;
        st.global.b64 [ %rd9 + 0 ], { %rd11 };
    """, tensor(x), tensor(old), threads=64, programs=4, batch=2)  # fmt: skip
    for place in range(8):
        mine = np.arange(256)[np.arange(256) % 8 == place]
        order = mine[np.argsort(old[mine])]
        seen = np.uint64(2**63) + np.concatenate([[0], np.cumsum(order)]).astype("u8")
        assert (old[order] == seen[:-1]).all() and x[place] == seen[-1]


def test_other_memory_is_refused():
    for line in ["ld.local.b32 %r4, [%r1];", "ld.global.b32.x %r4, [%rd1];", "st.async.b32 [%r1], %r2, [%r3];",
                 "ld.volatile.global.b32 %r4, [%rd1];", "atom.global.gpu.relaxed.cas.b32 %r4, [%rd1], %r2, %r3;",
                 "atom.shared.gpu.relaxed.add.u32 %r4, [%r1], %r2;", "red.global.gpu.relaxed.add.f32 [%rd1], %r2;",
                 "cp.async.bulk.commit_group;", "fence.acq_rel.gpu;", "prefetch.global.L1 [%rd1];"]:  # fmt: skip
        with pytest.raises(NotImplementedError):
            Program(text(line, [], 32))
