"""Numbers for the tests, and models of one number at a time: Python's integers, and fractions rounded once."""

import math
import struct
from fractions import Fraction

import numpy as np

RANDOM = np.random.default_rng(0)


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
