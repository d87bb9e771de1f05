"""Instructions that a warp executes together, against a model of one lane at a time."""

import numpy as np
import pytest

from tests.ptx.snippets import kinds, run, tensor

RANDOM = np.random.default_rng(1)


def lane_by_lane(mode, values, by, bounds):
    """The manual's pseudocode of shfl."""
    result, valid = [], []
    segment, clamp = bounds >> 8 & 31, bounds & 31
    for lane in range(32):
        last, first = (lane & segment) | (clamp & ~segment & 31), lane & segment
        if mode == "up":
            source, good = lane - by[lane], lane - by[lane] >= last
        elif mode == "down":
            source, good = lane + by[lane], lane + by[lane] <= last
        elif mode == "bfly":
            source, good = lane ^ by[lane], lane ^ by[lane] <= last
        else:
            source = first | (by[lane] & ~segment & 31)
            good = source <= last
        result.append(values[source if good else lane])
        valid.append(good)
    return result, valid


@pytest.mark.parametrize("bounds", [31, 0, 0x1800 | 31, 0x1C00 | 3, 0x1000])
@pytest.mark.parametrize("mode", ["bfly", "idx", "up", "down"])
def test_shuffles(mode, bounds):
    values, lanes = RANDOM.integers(0, 2**32, 64).astype("u4"), RANDOM.integers(0, 32, 64).astype("u4")
    for by in (lanes, np.full(64, 5, "u4")):
        out, valid = np.zeros(64, "u4"), np.zeros(64, "u4")
        operand = "%r5" if by is lanes else "5"
        reports = run(f"""
            mad.wide.u32 %rd9, %r1, 4, %rd1;
            ld.global.b32 {{ %r4 }}, [ %rd9 + 0 ];
            mad.wide.u32 %rd9, %r1, 4, %rd2;
            ld.global.b32 {{ %r5 }}, [ %rd9 + 0 ];
            shfl.sync.{mode}.b32 %r6|%p1, %r4, {operand}, {bounds}, -1;
            selp.b32 %r7, 1, 0, %p1;
            mad.wide.u32 %rd9, %r1, 4, %rd3;
            st.global.b32 [ %rd9 + 0 ], {{ %r6 }};
            mad.wide.u32 %rd9, %r1, 4, %rd4;
            st.global.b32 [ %rd9 + 0 ], {{ %r7 }};
        """, *map(tensor, (values, by, out, valid)), threads=64)  # fmt: skip
        assert not reports
        for warp in (slice(0, 32), slice(32, 64)):
            expected = lane_by_lane(mode, values[warp].tolist(), by[warp].tolist(), bounds)
            assert (out[warp].tolist(), valid[warp].astype(bool).tolist()) == expected


REDUCTIONS = {
    "redux.sync.add.s32": sum, "redux.sync.add.u32": sum, "redux.sync.min.u32": min, "redux.sync.max.u32": max,
    "redux.sync.min.s32": lambda x: min(x, key=lambda v: (v ^ 1 << 31)),
    "redux.sync.max.s32": lambda x: max(x, key=lambda v: (v ^ 1 << 31)),
    "redux.sync.and.b32": lambda x: int(np.bitwise_and.reduce(np.array(x, "u4"))),
    "redux.sync.or.b32": lambda x: int(np.bitwise_or.reduce(np.array(x, "u4"))),
    "redux.sync.xor.b32": lambda x: int(np.bitwise_xor.reduce(np.array(x, "u4"))),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    values = RANDOM.integers(0, 2**32, 64).astype("u4")
    out = np.zeros(64, "u4")
    assert not run(f"""
        mad.wide.u32 %rd9, %r1, 4, %rd1;
        ld.global.b32 {{ %r4 }}, [ %rd9 + 0 ];
        mov.b32 %r5, -1;
        {name} %r6, %r4, %r5;
        mad.wide.u32 %rd9, %r1, 4, %rd2;
        st.global.b32 [ %rd9 + 0 ], {{ %r6 }};
    """, tensor(values), tensor(out), threads=64)  # fmt: skip
    for warp in (slice(0, 32), slice(32, 64)):
        assert (out[warp] == REDUCTIONS[name](values[warp].tolist()) % 2**32).all()


def test_votes():
    values = np.zeros(96, "u4")
    values[3], values[40:] = 1, 1
    values[32:64] = 1
    out = np.zeros((3, 96), "u4")
    assert not run("""
        mad.wide.u32 %rd9, %r1, 4, %rd1;
        ld.global.b32 { %r4 }, [ %rd9 + 0 ];
        setp.ne.b32 %p1, %r4, 0;
        vote.sync.ballot.b32 %r5, %p1, -1;
        vote.sync.any.pred %p2, %p1, -1;
        vote.sync.all.pred %p3, !%p1, -1;
        selp.b32 %r6, 1, 0, %p2;
        selp.b32 %r7, 1, 0, %p3;
        mad.wide.u32 %rd9, %r1, 4, %rd2;
        st.global.b32 [ %rd9 + 0 ], { %r5 };
        st.global.b32 [ %rd9 + 384 ], { %r6 };
        st.global.b32 [ %rd9 + 768 ], { %r7 };
    """, tensor(values), tensor(out), threads=96)  # fmt: skip
    ballot = [sum(int(x) << n for n, x in enumerate(values[w : w + 32])) for w in (0, 32, 64)]
    assert (out[0] == np.repeat(ballot, 32)).all()
    assert (out[1] == np.repeat([1, 1, 1], 32)).all() and (out[2] == 0).all()


@pytest.mark.parametrize("instruction", ["shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1", "redux.sync.add.s32 %r6, %r4, %r5",
                                         "vote.sync.ballot.b32 %r6, %p1, -1"])  # fmt: skip
def test_lanes_that_are_missing_are_noticed(instruction):
    """By a predicate, and by a branch. Whole warps may be missing."""
    start = "mov.b32 %r4, 7; mov.b32 %r5, -1; setp.lt.u32 %p1, %r1, "
    branch = "@!%p1 bra $L__BB0_2; {}; $L__BB0_2:"
    for form in (f"@%p1 {instruction};", branch.replace("{}", instruction)):
        lines = form.replace("; ", ";\n").replace(": ", ":\n")
        assert not run(f"{start}32;\n{lines}", threads=64)
        found = run(f"{start}31;\n{lines}", threads=64)
        assert kinds(found) == {"warp-collective instruction with lanes missing"}, form
