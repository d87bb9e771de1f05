"""mma.sync, ldmatrix and stmatrix against the manual's figures, lane by lane, and einsum."""

import numpy as np
import pytest
import torch

from tests.ptx.snippets import kinds, run, tensor

RANDOM = np.random.default_rng(3)
LANES = np.arange(32)


def halves(kind, *shape):
    """Random numbers of 16 bits: their bits, and what they are."""
    x = torch.from_numpy(RANDOM.normal(size=shape)).to({"bf16": torch.bfloat16, "f16": torch.float16}[kind])
    return x.view(torch.int16).numpy().view("u2"), x.double().numpy()


def fragment(matrix, places):
    """(lanes, registers) of pairs: ``places`` gives row and column of the first and second of each."""
    return np.array(
        [[matrix[a].astype("u4") | (matrix[b].astype("u4") << 16) for a, b in lane] for lane in places], "u4"
    )


def a_places():
    def pair(lane, r):
        row, column = lane // 4 + 8 * (r % 2), lane % 4 * 2 + 8 * (r // 2)
        return (row, column), (row, column + 1)

    return [[pair(lane, r) for r in range(4)] for lane in range(32)]


def b_places():
    def pair(lane, r):
        row, column = lane % 4 * 2 + 8 * r, lane // 4
        return (row, column), (row + 1, column)

    return [[pair(lane, r) for r in range(2)] for lane in range(32)]


def loads(first, count, pointer):
    return "\n".join(f"ld.global.b32 %r{first + n}, [ {pointer} + {4 * n} ];" for n in range(count))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("chain", [1, 2, 3])
@pytest.mark.parametrize("in_place", [True, False])
def test_mma(kind, chain, in_place):
    """Of two warps, 2 tiles of rows by 2 of columns by ``chain`` along k. Results are added to in place, as Triton
    does, or each multiplication has a result of its own.
    """
    a, exact_a = halves(kind, 2, 2, chain, 16, 16)
    b, exact_b = halves(kind, 2, 2, chain, 16, 8)
    c = RANDOM.normal(size=(2, 2, 2, 16, 8)).astype("f4")
    exact = c + np.einsum("wmkij,wnkjl->wmnil", exact_a, exact_b)
    fragments_a = np.array([[[fragment(x, a_places()) for x in m] for m in w] for w in a])  # warp, m, k, lane, r
    fragments_b = np.array([[[fragment(x, b_places()) for x in n] for n in w] for w in b])
    rows, columns = LANES // 4, LANES % 4 * 2
    fragments_c = np.stack([c[..., rows + 8 * (r // 2), columns + r % 2] for r in range(4)], -1)  # warp, m, n, lane, r
    all_three = fragments_a, fragments_b, fragments_c
    by_thread = [np.ascontiguousarray(np.moveaxis(x, -2, 1)).reshape(64, -1) for x in all_three]
    out = np.zeros_like(by_thread[2])
    body = [f"mul.lo.s32 %r3, %r1, {4 * x.shape[1]};\ncvt.u64.u32 %rd9, %r3;\nadd.s64 %rd{20 + n}, %rd{n + 1}, %rd9;"
            for n, x in enumerate([*by_thread, out])]  # fmt: skip
    body += [loads(100, 8 * chain, "%rd20"), loads(200, 4 * chain, "%rd21"), loads(300, 16, "%rd22")]
    results = {(m, n): [300 + 8 * m + 4 * n + r for r in range(4)] for m in range(2) for n in range(2)}
    fresh = 400
    for k in range(chain):
        for (m, n), given in list(results.items()):
            registers_a = ", ".join(f"%r{100 + 4 * chain * m + 4 * k + r}" for r in range(4))
            registers_b = ", ".join(f"%r{200 + 2 * chain * n + 2 * k + r}" for r in range(2))
            to = given if in_place else list(range(fresh, fresh + 4))
            fresh += 4
            old, new = (", ".join(f"%r{x}" for x in names) for names in (given, to))
            body.append(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{ {new} }}, {{ {registers_a} }}, "
                        f"{{ {registers_b} }}, {{ {old} }};")  # fmt: skip
            results[m, n] = to
    for n, register in enumerate(r for names in results.values() for r in names):
        body.append(f"st.global.b32 [ %rd23 + {4 * n} ], %r{register};")
    assert not run("\n".join(body), *map(tensor, [*by_thread, out]), threads=64)
    found = np.zeros_like(c)
    for w, lane, m, n, r in np.ndindex(2, 32, 2, 2, 4):
        found[w, m, n, lane // 4 + 8 * (r // 2), lane % 4 * 2 + r % 2] = out.reshape(2, 32, 2, 2, 4)[w, lane, m, n, r]
    assert np.abs(found - exact).max() < 1e-5 * chain * np.abs(exact).max()


def test_mma_that_reads_what_another_one_gave():
    """Delayed multiplications are done before anything looks at what they give, and after what gives them."""
    one = int(np.float32(1).view("u4"))
    packed = one >> 16 | one
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    rest = "{ %r10, %r10, %r10, %r10 }, { %r10, %r10 }, { %r20, %r21, %r22, %r23 }"
    out = np.zeros((2, 32), "f4")
    assert not run(f"""
        mov.b32 %r10, {packed};
        mov.b32 %r20, 0;
        mov.b32 %r21, 0;
        mov.b32 %r22, 0;
        mov.b32 %r23, 0;
        {mma} {{ %r20, %r21, %r22, %r23 }}, {rest};
        mov.b32 %r30, %r20;
        cvt.rn.bf16x2.f32 %r10, %r20, %r20;
        {mma} {{ %r20, %r21, %r22, %r23 }}, {rest};
        mov.b32 %r10, 0;
        {mma} {{ %r20, %r21, %r22, %r23 }}, {rest};
        mad.wide.u32 %rd9, %r1, 4, %rd1;
        st.global.b32 [ %rd9 + 0 ], %r30;
        st.global.b32 [ %rd9 + 128 ], %r20;
    """, tensor(out))  # fmt: skip
    assert (out[0] == 16).all() and (out[1] == 16 + 16 * 256).all()


def test_mma_that_multiplies_what_others_add_to():
    """Three in a row: the second one's A is what the first gives and the third adds to."""
    one = int(np.float32(1).view("u4"))
    ones = "{ %r10, %r10, %r10, %r10 }, { %r10, %r10 }"
    first, second = "{ %r20, %r21, %r22, %r23 }", "{ %r24, %r25, %r26, %r27 }"
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    out = np.zeros((2, 32), "f4")
    body = [f"mov.b32 %r10, {one >> 16 | one};", *(f"mov.b32 %r{20 + n}, 0;" for n in range(8))]
    body += [f"{mma} {first}, {ones}, {first};", f"{mma} {second}, {first}, {{ %r10, %r10 }}, {second};"]
    body += [f"{mma} {first}, {ones}, {first};", "mad.wide.u32 %rd9, %r1, 4, %rd1;"]
    body += ["st.global.b32 [ %rd9 + 0 ], %r20;", "st.global.b32 [ %rd9 + 128 ], %r24;"]
    assert not run("\n".join(body), tensor(out))
    assert (out[0] == 32).all() and (out[1] == 8 * 16).all()  # 16.0 has the halves 0 and 16


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("name", ["ld", "st"])
def test_matrices_of_eight_rows(name, count, trans):
    """Rows at scattered addresses, of two warps."""
    rows = RANDOM.permutation(2 * 32).reshape(2, 32)  # which row of memory each lane points at
    addresses = (rows * 16).astype("u4").reshape(-1)
    memory = RANDOM.integers(0, 2**16, (64, 8)).astype("u2")
    values = RANDOM.integers(0, 2**32, (64, count)).astype("u4")
    out = np.zeros((64, count), "u4")
    registers = ", ".join(f"%r{40 + n}" for n in range(count))
    step = (f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r5];" if name == "ld" else
            f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r5], {{{registers}}};")  # fmt: skip
    reports = run(f"""
        mad.wide.u32 %rd9, %r1, 4, %rd1;
        ld.global.b32 %r5, [ %rd9 + 0 ];
        shl.b32 %r6, %r1, 4;
        mad.wide.u32 %rd9, %r1, 16, %rd2;
        ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [ %rd9 + 0 ];
        st.shared.v4.b32 [%r6], {{%r10, %r11, %r12, %r13}};
        mad.wide.u32 %rd10, %r1, {4 * count}, %rd3;
        {loads(40, count, "%rd10")}
        bar.sync 0;
        {step}
        bar.sync 0;
        ld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [%r6];
        st.global.v4.b32 [ %rd9 + 0 ], {{%r10, %r11, %r12, %r13}};
        mad.wide.u32 %rd10, %r1, {4 * count}, %rd4;
    """ + "\n".join(f"st.global.b32 [ %rd10 + {4 * n} ], %r{40 + n};" for n in range(count)),
        tensor(addresses), tensor(memory), tensor(values), tensor(out), threads=64, shared=1024)  # fmt: skip
    assert not reports
    before = memory.copy()
    for w, i, lane in np.ndindex(2, count, 32):
        for h in range(2):
            row, column = (lane % 4 * 2 + h, lane // 4) if trans else (lane // 4, lane % 4 * 2 + h)
            at = rows[w, 8 * i + row], column
            if name == "ld":
                assert out[32 * w + lane, i] >> 16 * h & 0xFFFF == before[at]
            else:
                assert memory[at] == values[32 * w + lane, i] >> 16 * h & 0xFFFF


def test_matrices_take_part_in_races():
    """As whose lanes give the addresses; the others, here the upper half of a warp, neither read nor write."""
    body = """
        shl.b32 %r5, %r1, 4;
        mov.b32 %r4, 0;
        st.shared.v4.b32 [%r5], {{%r4, %r4, %r4, %r4}};
        {}
        xor.b32 %r6, %r5, 512;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r10, %r11}}, [%r6];
        {}
        stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r5], {{%r10, %r11}};
        {}
        {}st.shared.v4.b32 [%r6], {{%r4, %r4, %r4, %r4}};
    """
    sync = "bar.sync 0;"
    assert not run(body.format(sync, sync, sync, ""), threads=64, shared=1024)
    for n, kind in enumerate(["shared read after a write", "shared write after a read", "two shared writes"]):
        syncs = [sync, sync, sync]
        syncs[n] = ""
        found = kinds(run(body.format(*syncs, ""), threads=64, shared=1024))
        assert found == {f"RACE: {kind} with no barrier between"}
    upper = "and.b32 %r7, %r1, 16;\n"
    upper += "setp.ne.s32 %p1, %r7, 0;\n@%p1 "
    assert not run(body.format(sync, sync, "", upper), threads=64, shared=1024)


@pytest.mark.parametrize("step", ["ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r5]",
                                  "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r5], {%r6}"])  # fmt: skip
def test_lanes_that_are_missing_are_noticed(step):
    body = "shl.b32 %r5, %r1, 4;\nmov.b32 %r6, 0;\nst.shared.v4.b32 [%r5], {%r6, %r6, %r6, %r6};\n"
    body += f"setp.lt.u32 %p1, %r1, 30;\n@%p1 {step};"
    assert kinds(run(body, shared=512)) == {"warp-collective instruction with lanes missing"}
