"""Every instruction that computes in registers, against a model of one number at a time: Python's integers, and
fractions that are rounded once.
"""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.snippets import compute

RANDOM = np.random.default_rng(0)
SIGNED = {16: np.int16, 32: np.int32, 64: np.int64}
FORMATS = {"f32": (24, -149, 128), "bf16": (8, -133, 128), "f16": (11, -24, 16), "f64": (53, -1074, 1024)}


def integers(bits, count=200):
    """Two arrays with all pairs of the values at the edges, and random ones, long and short."""
    top = 2 ** (bits - 1)
    edges = [0, 1, 2, 5, 31, 32, 33, top - 1, top, top + 1, 2 * top - 7, 2 * top - 1]
    pairs = [(a, b) for a in edges for b in edges]
    pairs += [(int.from_bytes(RANDOM.bytes(8)) >> int(n), int.from_bytes(RANDOM.bytes(8)) >> int(m))
              for n, m in RANDOM.integers(0, 64, (count, 2))]  # fmt: skip
    return np.array([[x % 2**bits for x in pair] for pair in pairs], f"u{bits // 8}").T


def signed(x, bits):
    return x - 2**bits if x >> (bits - 1) else x


def each(model, *arrays, kind):
    """``model`` of Python integers, modulo the size of the result."""
    kind = np.dtype(kind)
    bits = 8 * kind.itemsize
    return np.array([model(*map(int, x)) % 2**bits for x in zip(*arrays, strict=True)], kind)


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


# ---- Floating point ----


def decoded(kind, bits):
    if kind == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    letter, size = {"f32": ("f", 4), "f16": ("e", 2), "f64": ("d", 8)}[kind]
    return struct.unpack(f"<{letter}", bits.to_bytes(size, "little"))[0]


def rounded(value, kind, sign=1.0):
    """A fraction to the nearest number, ties to even; ``sign`` is that of a zero."""
    precision, least, largest = FORMATS[kind]
    if not value:
        return math.copysign(0.0, sign)
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - precision + 1, least)
    result = round(value / unit) * unit
    if abs(result) >= Fraction(2) ** largest:
        return math.copysign(math.inf, value)
    return math.copysign(float(result), value)


def floats(kind, count=150):
    """Bits of pairs of numbers: all pairs of edges, random bits, and numbers near each other."""
    bits, fraction = (32, 23) if kind == "f32" else (16, 7 if kind == "bf16" else 10)
    one = int(np.float32(1).view("u4")) >> 16 if kind == "bf16" else (0x3C00 if kind == "f16" else 0x3F800000)
    infinity = (1 << bits - 1) - (1 << fraction)
    positive = [0, 1, (1 << fraction) - 1, 1 << fraction, one, one + 1, infinity - 1, infinity, infinity + 5]
    edges = positive + [x + (1 << bits - 1) for x in positive]
    pairs = [(a, b) for a in edges for b in edges]
    pairs += RANDOM.integers(0, 2**bits, (count, 2)).tolist()
    near = one + RANDOM.integers(-(8 << fraction), 8 << fraction, (count, 2))
    signs = RANDOM.integers(0, 2, (count, 2)) << bits - 1
    return np.array([*pairs, *(near + signs)], f"u{bits // 8}").T


def same(found, expected, kind):
    """Bit for bit, but one NaN is as good as another."""
    for bits, value in zip(found.tolist(), expected, strict=True):
        got = decoded(kind, bits)
        equal = got == value and math.copysign(1, got) == math.copysign(1, value)
        assert equal or math.isnan(got) and math.isnan(value), (hex(bits), got, value)


def flushed(x):
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def arithmetic(model, zero, kind):
    """``model`` of exact numbers, where all are finite; ``zero`` of floats otherwise, and for a zero's sign."""

    def call(*values):
        if all(map(math.isfinite, values)):
            exact = model(*map(Fraction, values))
            if exact is not None:
                return rounded(exact, kind, sign=zero(*values) if not exact else 1.0)
        return zero(*values)

    return call


def over(a, b):
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
    return a / b


def least(a, b):
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return a if math.copysign(1, a) < math.copysign(1, b) else b if a == b else min(a, b)


def most(a, b):
    return -least(-a, -b)


def with_nan(model):
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else model(a, b)


BINARY = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "sub": (lambda a, b: a - b, lambda a, b: a - b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "min": (lambda a, b: None, least),
    "max": (lambda a, b: None, most),
    "min.NaN": (lambda a, b: None, with_nan(least)),
    "max.NaN": (lambda a, b: None, with_nan(most)),
}


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", BINARY)
def test_floats(name, kind):
    a, b = floats(kind)
    model = arithmetic(*BINARY[name], kind)
    expected = [model(decoded(kind, x), decoded(kind, y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    found = compute(f"{name}.{kind} {{d}}, {{a}}, {{b}}", a, b, result=a.dtype)
    same(found, expected, kind)
    if kind != "f32":  # packed in pairs
        first, second = a.astype("u4") | (a[::-1].astype("u4") << 16), b.astype("u4") | (b[::-1].astype("u4") << 16)
        packed = compute(f"{name}.{kind}x2 {{d}}, {{a}}, {{b}}", first, second, result="u4")
        same(packed & 0xFFFF, expected, kind)
        same(packed >> 16, expected[::-1], kind)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max", "div.full", "div.rn", "fma.rn"])
@pytest.mark.parametrize("flush", [".ftz", ""])
def test_flushed_floats(name, flush):
    a, b = floats("f32")
    c = b[::-1].copy()
    model = {**BINARY, "div.full": (lambda a, b: a / b if b else None, over),
             "fma.rn": (lambda a, b, c: a * b + c, lambda a, b, c: a * b + c)}  # fmt: skip
    model["div.rn"] = model["div.full"]
    call = arithmetic(*model[name], "f32")
    clean = flushed if flush else (lambda x: x)
    columns = [a, b, c] if name == "fma.rn" else [a, b]
    values = [[clean(decoded("f32", x)) for x in row] for row in zip(*(x.tolist() for x in columns), strict=True)]
    expected = [clean(call(*row)) for row in values]
    operands = ", ".join("{" + x + "}" for x in "dabc"[: len(columns) + 1])
    same(compute(f"{name}{flush}.f32 {operands}", *columns, result="u4"), expected, "f32")


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_fma_is_rounded_once(kind):
    """On products that lie near or on the middle between two numbers, where rounding twice goes wrong."""
    digits, one = {"f32": (23, 0x3F800000), "bf16": (7, 0x3F80), "f16": (10, 0x3C00)}[kind]
    size = 4 if kind == "f32" else 2
    a = (one + RANDOM.integers(0, 1 << digits, 3000)).astype(f"u{size}")
    b = (one + (1 << RANDOM.integers(0, digits, 3000))).astype(f"u{size}")
    down = RANDOM.integers(0, 14 if kind == "f16" else 60, 3000)  # so many powers of two smaller
    c = (one - (down << digits) + RANDOM.integers(0, 4, 3000)).astype(f"u{size}")
    expected = [
        rounded(Fraction(x) * Fraction(y) + Fraction(z), kind)
        for x, y, z in ([decoded(kind, n) for n in row] for row in zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    ]
    same(compute(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}}", a, b, c, result=a.dtype), expected, kind)


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_signs(kind):
    a, _ = floats(kind)
    top = 1 << 8 * a.itemsize - 1
    assert (compute(f"neg.{kind} {{d}}, {{a}}", a, result=a.dtype) == a ^ top).all()
    assert (compute(f"abs.{kind} {{d}}, {{a}}", a, result=a.dtype) == a & ~np.array(top, a.dtype)).all()


def positive_or_nan(function):
    return lambda x: function(x) if x >= 0 else math.nan


FUNCTIONS = {
    "rcp.approx.ftz": lambda x: over(1.0, x), "sqrt.rn": positive_or_nan(math.sqrt),
    "rsqrt.approx": lambda x: over(1.0, math.sqrt(x)) if x > 0 else (over(1.0, x) if x == 0 else math.nan),
    "ex2.approx.ftz": lambda x: 2.0**x if x < 128 else math.inf if x == x else x,
    "lg2.approx": lambda x: math.log2(x) if x > 0 else (-math.inf if x == 0 else math.nan),
    "tanh.approx": math.tanh, "sin.approx": lambda x: math.sin(x) if math.isfinite(x) else math.nan,
    "cos.approx": lambda x: math.cos(x) if math.isfinite(x) else math.nan,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    """Rounded from float64: to within a unit in the last place, and flushed where the instruction says so."""
    a, _ = floats("f32")
    found = compute(f"{name}.f32 {{d}}, {{a}}", a, result="f4")
    clean = flushed if "ftz" in name else (lambda x: x)
    for bits, got in zip(a.tolist(), found.tolist(), strict=True):
        expected = clean(float(np.float32(FUNCTIONS[name](clean(decoded("f32", bits))))))
        close = got == expected or abs(got - expected) <= 2.0**-23 * abs(expected) + 2.0**-149
        assert close or math.isnan(got) and math.isnan(expected), (hex(bits), got, expected)


# ---- Comparison, selection, conversion ----

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
