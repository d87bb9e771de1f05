"""Comparison, selection, movement and conversion; and what is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.examples import FORMATS, RANDOM, decoded, each, floats, integers, rounded, same, signed
from tests.ptx.snippets import compute

ORDER = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
         "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}  # fmt: skip


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "b16", "b32", "f32", "bf16", "f16"])
def test_comparisons(kind):
    floating = kind in FORMATS
    bits = int(kind.lstrip("bsuf"))
    a, b = floats(kind) if floating else integers(bits)
    read = (lambda x: decoded(kind, x)) if floating else (lambda x: signed(x, bits)) if kind[0] == "s" else int
    pairs = [(read(x), read(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    nan = [floating and (math.isnan(x) or math.isnan(y)) for x, y in pairs]
    names = ("eq", "ne") if kind[0] == "b" and not floating else ORDER
    for name in names:
        expected = np.array([ORDER[name](x, y) and not n for (x, y), n in zip(pairs, nan, strict=True)])
        assert (compute(f"setp.{name}.{kind} {{d}}, {{a}}, {{b}}", a, b, result=bool) == expected).all(), name
        if floating:
            found = compute(f"setp.{name}u.{kind} {{d}}, {{a}}, {{b}}", a, b, result=bool)
            assert (found == expected | np.array(nan)).all(), name
    if floating:
        assert (compute(f"setp.nan.{kind} {{d}}, {{a}}, {{b}}", a, b, result=bool) == nan).all()
        assert (compute(f"setp.num.{kind} {{d}}, {{a}}, {{b}}", a, b, result=bool) != nan).all()


def test_unsigned_names_of_comparisons():
    a, b = integers(32)
    for name, expected in {"lo": a < b, "ls": a <= b, "hi": a > b, "hs": a >= b}.items():
        assert (compute(f"setp.{name}.u32 {{d}}, {{a}}, {{b}}", a, b, result=bool) == expected).all()


def test_comparison_with_two_results_and_a_third_predicate():
    a, b = integers(32)
    below, three = a < b, a & 1 == 1
    found = compute("setp.eq.s32 %p40, 1, 1; setp.lt.u32 %p41|%p42, {a}, {b}; mov.pred {d}, %p42", a, b, result=bool)
    assert (found == ~below).all()
    start = "and.b32 %r90, {a}, 1; setp.eq.s32 %p40, %r90, 1; setp.lt."
    for how, expected in {"and": below & three, "or": below | three, "xor": below ^ three}.items():
        assert (compute(f"{start}{how}.u32 {{d}}, {{a}}, {{b}}, %p40", a, b, result=bool) == expected).all()
        negated = compute(f"{start}{how}.u32 %p43|{{d}}, {{a}}, {{b}}, %p40", a, b, result=bool)
        expected = {"and": ~below & three, "or": ~below | three, "xor": ~below ^ three}[how]
        assert (negated == expected).all()


def test_comparison_of_pairs():
    a, b = floats("bf16")
    first, second = a.astype("u4") | (b.astype("u4") << 16), b.astype("u4") | (a.astype("u4") << 16)
    low = np.array([decoded("bf16", x) > decoded("bf16", y) for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    high = np.array([decoded("bf16", y) > decoded("bf16", x) for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    assert (compute("setp.gt.bf16x2 {d}|%p40, {a}, {b}", first, second, result=bool) == low).all()
    assert (compute("setp.gt.bf16x2 %p40|{d}, {a}, {b}", first, second, result=bool) == high).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_selection_and_movement(bits):
    a, b = integers(bits)
    start = "and.b32 %r90, %r1, 3; setp.eq.s32 %p40, %r90, 1; "
    chosen = np.arange(len(a)) % 4 == 1
    found = compute(f"{start}selp.b{bits} {{d}}, {{a}}, {{b}}, %p40", a, b, result=a.dtype)
    assert (found == np.where(chosen, a, b)).all()
    assert (compute(f"mov.b{bits} {{d}}, {{b}}", a, b, result=a.dtype) == b).all()


def test_predicates():
    a, b = integers(32)
    start = "setp.lt.u32 %p40, {a}, {b}; setp.eq.s32 %p41, {a}, {a}; not.pred %p42, %p40; "
    below = a < b
    expected = {
        "and.pred {d}, %p40, %p41": below, "or.pred {d}, %p42, !%p41": ~below, "xor.pred {d}, %p40, %p41": ~below,
        "mov.pred {d}, %p42": ~below, "mov.pred {d}, -1": below | True, "mov.pred {d}, 0": below & False,
    }  # fmt: skip
    for instruction, value in expected.items():
        assert (compute(start + instruction, a, b, result=bool) == value).all(), instruction


def test_packing():
    a, b = integers(16)
    both = a.astype("u4") | (b.astype("u4") << 16)
    assert (compute("mov.b32 {d}, {{{a}, {b}}}", a, b, result="u4") == both).all()
    assert (compute("mov.b32 {{%rs90, {d}}}, {a}", both, result="u2") == b).all()
    assert (compute("mov.b32 {{{d}, %rs90}}, {a}", both, result="u2") == a).all()
    c, e = integers(32)
    assert (compute("mov.b64 {d}, {{{a}, {b}}}", c, e, result="u8") == c + (e.astype("u8") << np.uint64(32))).all()
    assert (compute("mov.b64 {{%r90, {d}}}, {a}", c.astype("u8") << np.uint64(32), result="u4") == c).all()


def test_conversion_of_integers():
    for source, to in [("s32", "s64"), ("u32", "u64"), ("u64", "u32"), ("s16", "s32"), ("u16", "u32"), ("u32", "u16"),
                       ("s32", "s16")]:  # fmt: skip
        bits, after = int(source[1:]), int(to[1:])
        a, _ = integers(bits)
        read = (lambda x: signed(x, bits)) if source[0] == "s" else int  # noqa: B023
        found = compute(f"cvt.{to}.{source} {{d}}, {{a}}", a, result=f"u{after // 8}")
        assert (found == each(read, a, kind=f"u{after // 8}")).all(), (source, to)
    a, _ = integers(32)
    found = compute("cvt.s32.s8 {d}, {a}", a, result="u4")
    assert (found == each(lambda x: signed(x & 255, 8), a, kind="u4")).all()


def test_conversion_of_integers_to_floats():
    for source in ("s32", "u32", "s64", "u64"):
        bits = int(source[1:])
        a, _ = integers(bits)
        read = (lambda x: signed(x, bits)) if source[0] == "s" else int  # noqa: B023
        expected = [rounded(Fraction(read(x)), "f32") for x in a.tolist()]
        same(compute(f"cvt.rn.f32.{source} {{d}}, {{a}}", a, result="u4"), expected, "f32")


@pytest.mark.parametrize("how", ["rni", "rzi", "rmi", "rpi"])
def test_conversion_of_floats_to_integers(how):
    model = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[how]
    a, b = floats("f32")
    halves = (np.arange(-40, 40) / 4).astype("f4").view("u4")
    near = np.array([2**31, 2**32, 2**63, 2**64], "f4").view("u4")
    a = np.concatenate([a, b, halves, near, near - 1, near + 0x80000000]).astype("u4")
    for to in ("s32", "u32", "s64", "u64"):
        bits = int(to[1:])
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if to[0] == "s" else (0, 2**bits - 1)

        def convert(x, low=low, high=high, bits=bits):
            value = decoded("f32", x)
            if math.isnan(value):
                return 0 if bits < 64 else 1 << 63
            return (high if value > 0 else low) if math.isinf(value) else min(max(model(value), low), high)

        found = compute(f"cvt.{how}.{to}.f32 {{d}}, {{a}}", a, result=f"u{bits // 8}")
        assert (found == each(convert, a, kind=f"u{bits // 8}")).all(), to


def test_rounding_to_whole_numbers():
    a = np.concatenate([floats("f32")[0], (np.arange(-40, 40) / 4).astype("f4").view("u4")])
    for how, model in {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}.items():
        values = [decoded("f32", x) for x in a.tolist()]
        expected = [math.copysign(float(model(x)), x) if math.isfinite(x) else x for x in values]
        same(compute(f"cvt.{how}.f32.f32 {{d}}, {{a}}", a, result="u4"), expected, "f32")


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_conversion_of_floats(kind):
    a, b = floats("f32")
    middle = (RANDOM.integers(0, 2**15, 200) << 16 | 0x8000).astype("u4")  # between two bf16
    a, b = np.concatenate([a, middle]), np.concatenate([b, middle + 1])
    value = [rounded(Fraction(x), kind, x) if math.isfinite(x) else x for x in (decoded("f32", x) for x in a.tolist())]
    other = [rounded(Fraction(x), kind, x) if math.isfinite(x) else x for x in (decoded("f32", x) for x in b.tolist())]
    same(compute(f"cvt.rn.{kind}.f32 {{d}}, {{a}}", a, result="u2"), value, kind)
    packed = compute(f"cvt.rn.{kind}x2.f32 {{d}}, {{a}}, {{b}}", a, b, result="u4")
    same(packed >> 16, value, kind)
    same(packed & 0xFFFF, other, kind)
    narrow, _ = floats(kind)
    wide = [decoded(kind, x) for x in narrow.tolist()]
    same(compute(f"cvt.f32.{kind} {{d}}, {{a}}", narrow, result="u4"), wide, "f32")


@pytest.mark.parametrize(
    "instruction",
    [
        "add.sat.f32 {d}, {a}, {a}", "add.rz.f32 {d}, {a}, {a}", "popc.b32 {d}, {a}", "cvt.rz.bf16.f32 %rs1, {a}",
        "add.cc.u32 {d}, {a}, {a}", "mul.s32 {d}, {a}, {a}", "prmt.b32.f4e {d}, {a}, {a}, {a}",
        "madc.hi.u32 {d}, {a}, {a}, {a}", "bfe.u32 {d}, {a}, {a}, 3", "mov.b32 {d}, %clock",
        "cvt.rn.f32.f64 {d}, %rd1", "setp.eq.f64 %p9, %rd1, %rd1", "fma.rn.f64 %rd1, %rd1, %rd1, %rd1",
    ],
)  # fmt: skip
def test_what_is_unknown_is_refused(instruction):
    with pytest.raises(NotImplementedError):
        compute(instruction, np.zeros(32, "u4"), result="u4")
