"""Arithmetic, logic and shifts of integers."""

import struct

import numpy as np
import pytest

from tests.ptx.examples import RANDOM, each, integers, signed
from tests.ptx.snippets import compute


def quotient(a, b):
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else None


INTEGERS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul.lo": lambda a, b: a * b, "min": min, "max": max,
    "div": quotient, "rem": lambda a, b: a - b * quotient(a, b),
}  # fmt: skip


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers(name, kind):
    bits = int(kind[1:])
    a, b = integers(bits)
    if name in ("div", "rem"):  # by zero, and what has no quotient: not defined
        known = (b != 0) & ~((a == 1 << bits - 1) & (b == 2**bits - 1) & (kind[0] == "s"))
        a, b = a[known], b[known]
    found = compute(f"{name}.{kind} {{d}}, {{a}}, {{b}}", a, b, result=a.dtype)
    read = (lambda x: signed(x, bits)) if kind[0] == "s" else int
    assert (found == each(lambda x, y: INTEGERS[name](read(x), read(y)), a, b, kind=a.dtype)).all()


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_products(kind):
    """wide, hi and mad"""
    a, b = integers(32)
    read = (lambda x: signed(x, 32)) if kind[0] == "s" else int

    def product(x, y):
        return read(x) * read(y)

    wide = each(product, a, b, kind="u8")
    assert (compute(f"mul.wide.{kind} {{d}}, {{a}}, {{b}}", a, b, result="u8") == wide).all()
    assert (compute(f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}}", a, b, wide[::-1].copy(), result="u8")
            == wide + wide[::-1]).all()  # fmt: skip
    high = each(lambda x, y: product(x, y) >> 32, a, b, kind="u4")
    assert (compute(f"mul.hi.{kind} {{d}}, {{a}}, {{b}}", a, b, result="u4") == high).all()
    assert (compute(f"mad.lo.{kind} {{d}}, {{a}}, {{b}}, {{a}}", a, b, result="u4") == a * b + a).all()


def test_one_integer():
    a, _ = integers(32)
    assert (compute("neg.s32 {d}, {a}", a, result="u4") == each(lambda x: -x, a, kind="u4")).all()
    assert (compute("abs.s32 {d}, {a}", a, result="u4") == each(lambda x: abs(signed(x, 32)), a, kind="u4")).all()
    least = each(lambda x: max(min(signed(x, 32), 7), 0), a, kind="u4")
    assert (compute("min.relu.s32 {d}, {a}, 7", a, result="u4") == least).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    a, b = integers(bits)
    for name, expected in {"and": a & b, "or": a | b, "xor": a ^ b}.items():
        assert (compute(f"{name}.b{bits} {{d}}, {{a}}, {{b}}", a, b, result=a.dtype) == expected).all()
    assert (compute(f"not.b{bits} {{d}}, {{a}}", a, result=a.dtype) == ~a).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits):
    """By a register's amount, which may be anything, and by each constant one."""
    a, _ = integers(bits)
    amount = np.resize([0, 1, 7, bits - 1, bits, bits + 1, 255, 2**31, 2**32 - 1], len(a)).astype("u4")
    models = {
        f"shl.b{bits}": lambda x, n: x << min(n, bits),
        f"shr.u{bits}": lambda x, n: x >> min(n, bits),
        f"shr.s{bits}": lambda x, n: signed(x, bits) >> min(n, bits),
    }
    for name, model in models.items():
        found = compute(f"{name} {{d}}, {{a}}, {{b}}", a, amount, result=a.dtype)
        assert (found == each(model, a, amount, kind=a.dtype)).all()
        for n in (0, 3, bits - 1, bits, bits + 9):
            found = compute(f"{name} {{d}}, {{a}}, {n}", a, result=a.dtype)
            assert (found == each(lambda x: model(x, n), a, kind=a.dtype)).all(), n  # noqa: B023


def extracted(x, first, count, with_sign):
    """As the manual's pseudocode."""
    end = first + count - 1
    sign = with_sign and count > 0 and x >> min(end, 31) & 1
    return sum(((x >> first + i & 1) if i < count and first + i <= 31 else sign) << i for i in range(32))


@pytest.mark.parametrize(("first", "count"), [(0, 32), (0, 0), (3, 5), (31, 1), (28, 9), (40, 3), (0, 31), (5, 40)])
def test_bit_fields(first, count):
    a, _ = integers(32)
    for kind in ("u32", "s32"):
        found = compute(f"bfe.{kind} {{d}}, {{a}}, {first}, {count}", a, result="u4")
        assert (found == each(lambda x: extracted(x, first, count, kind == "s32"), a, kind="u4")).all()  # noqa: B023


def test_permutation_of_bytes():
    a, b = integers(32)
    c = RANDOM.integers(0, 2**16, len(a)).astype("u4")

    def model(x, y, selectors):
        source = struct.pack("<II", x, y)
        chosen = [(source[s & 7], s & 8) for s in (selectors >> 4 * i & 15 for i in range(4))]
        return int.from_bytes(bytes((0xFF * (byte >> 7)) if sign else byte for byte, sign in chosen), "little")

    assert (compute("prmt.b32 {d}, {a}, {b}, {c}", a, b, c, result="u4") == each(model, a, b, c, kind="u4")).all()
    expected = each(lambda x, y: model(x, y, 0x5410), a, b, kind="u4")
    assert (compute("prmt.b32 {d}, {a}, {b}, 0x5410U", a, b, result="u4") == expected).all()


@pytest.mark.parametrize("table", [0x00, 0xFF, 0xE8, 0x96, 0xCA, 0x01])
def test_logic_of_three(table):
    a, b = integers(32)
    c = RANDOM.integers(0, 2**32, len(a)).astype("u4")

    def model(x, y, z):
        return sum((table >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1)) & 1) << i for i in range(32))

    found = compute(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table}", a, b, c, result="u4")
    assert (found == each(model, a, b, c, kind="u4")).all()
