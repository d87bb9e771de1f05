"""Floating-point arithmetic, of bf16 and f16 too."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.examples import RANDOM, decoded, floats, flushed, rounded, same
from tests.ptx.snippets import compute


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
