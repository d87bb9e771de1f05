"""What single instructions compute, on numpy arrays (one element a thread) or numpy scalars (all threads the same).

NaNs have whatever payload numpy gives them; PTX writes 0x7FFFFFFF.
"""

import numpy as np

TINY = np.float32(2.0**-126)  # the least normal number
HALF, ONE, ONE_F = np.uint32(0x7FFF), np.uint32(1), np.float32(1)


def from_bf16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x):
    """To nearest, ties to even. Adding carries into the exponent where the fraction is full, up to infinity."""
    bits = x.view(np.uint32)
    rounded = ((bits + (HALF + ((bits >> np.uint32(16)) & ONE))) >> np.uint32(16)).astype(np.uint16)
    return np.where(x != x, np.uint16(0x7FFF), rounded)


def from_f16(bits):
    return bits.view(np.float16).astype(np.float32)


def to_f16(x):
    return x.astype(np.float16).view(np.uint16)


def pair(low, high):
    """Two values of 16 bits as one of 32."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def ftz(x):
    """.ftz: subnormal numbers become zeros of their sign."""
    return x * (np.abs(x) >= TINY)


def sum_to_odd(a, b, c):
    """a * b + c in float64, a * b being exact there; where that is not exact, of its two neighbours the one with an odd
    last bit. Rounded once more, to less than 52 bits, this gives what one rounding of the exact sum would.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (total.view(np.int64) & 1) == 0
    wrong = (error != 0) & even & np.isfinite(total)
    return np.where(wrong, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)


def fma(a, b, c):
    """float32. Rounding a float64 sum once more can be wrong only where that looks like a tie (and where the result is
    subnormal: those may be wrong in their last place).
    """
    total = a.astype(np.float64) * b + c
    tie = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    if tie.any():
        some = [x[tie] if x.ndim and total.ndim else x for x in (a, b, c.astype(np.float64))]
        total = sum_to_odd(*some) if not total.ndim else _replaced(total, tie, sum_to_odd(*some))
    return total.astype(np.float32)


def _replaced(array, where, values):
    array[where] = values
    return array


def fma_16(a, b, c, to):
    """As `fma`, with arguments and result of 16 bits; ``to`` rounds a float32 that keeps what decides ties."""
    total = sum_to_odd(a, b, c.astype(np.float64))
    bits = total.astype(np.float32)
    towards_zero = np.where(np.abs(bits.astype(np.float64)) > np.abs(total), np.nextafter(bits, np.float32(0)), bits)
    inexact = (towards_zero.astype(np.float64) != total) & np.isfinite(total)
    return to((towards_zero.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32))


def smaller(a, b):
    """min.f: a number if there is one; -0 is less than +0, which numpy leaves open."""
    result = np.fmin(a, b)
    zeros = result == 0
    if zeros.any():
        integer = np.uint32 if result.itemsize == 4 else np.uint64
        both = zeros & (a == b)
        result = np.where(both, (a.view(integer) | b.view(integer)).view(result.dtype), result)
    return result


def larger(a, b):
    return -smaller(-a, -b)


def propagating(choose):
    """min.NaN and max.NaN."""

    def call(a, b):
        return np.where((a != a) | (b != b), np.float32(np.nan), choose(a, b))

    return call


smaller_or_nan, larger_or_nan = propagating(smaller), propagating(larger)


def divide(a, b):
    """div of integers, towards zero. By zero it is not defined; here it gives something."""
    return (a - np.fmod(a, b)) // np.where(b == 0, b.dtype.type(1), b)


def shift_left(x, n):
    return _shift(np.left_shift, x, n)


def shift_right(x, n):
    """Signed or not, as x is."""
    return _shift(np.right_shift, x, n)


def _shift(shift, x, n):
    """Amounts beyond the width shift everything out (PTX ISA 9.7.8, shl and shr), as a shift by one less and one do."""
    most = 8 * x.itemsize - 1
    shifted = shift(x, np.minimum(n, np.uint32(most)).astype(x.dtype))
    return np.where(n > most, shift(shifted, x.dtype.type(1)), shifted)


def bits_unsigned(x, first, count):
    """bfe.u32"""
    return (x >> np.uint32(first)) & np.uint32((1 << count) - 1 & 0xFFFFFFFF) if first < 32 else x & np.uint32(0)


def bits_signed(x, first, count):
    """bfe.s32: beyond bit 31, or beyond the field, its sign."""
    end = min(first + count, 32)
    if not count:
        return x & np.int32(0)
    first = min(first, 31)
    return (x << np.int32(32 - max(end, first + 1))) >> np.int32(32 - max(end - first, 1))


def permute(a, b, selectors):
    """prmt: four of the eight bytes of a and b; with its highest bit set, a selector takes only the byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.uint32(0)
    for i in range(4):
        selector = selectors >> np.uint32(4 * i)
        by = np.uint64(8) * (selector & np.uint32(7)).astype(np.uint64)
        byte = ((both >> by) & np.uint64(255)).astype(np.uint32)
        sign = (byte >> np.uint32(7)) * np.uint32(255)
        result = result | np.where(selector & np.uint32(8) != 0, sign, byte) << np.uint32(8 * i)
    return result


def lookup(a, b, c, table):
    """lop3: bit by bit, a function of three given by its table."""
    result = np.uint32(0)
    for i in range(8):
        if table >> i & 1:
            result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result & (a | ~a)


ROUNDED = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integer(x, rounding, kind):
    """cvt of a floating-point number: saturating, and 0 for a NaN, or in 64 bits the highest of them alone."""
    limits = np.iinfo(kind)
    value = ROUNDED[rounding](x.astype(np.float64))
    below, above = value < float(limits.min), value >= float(limits.max) + (limits.bits < 64)
    unknown = value != value
    result = np.where(below | above | unknown, 0.0, value).astype(kind)
    result = np.where(below, kind(limits.min), np.where(above, kind(limits.max), result))
    nothing = kind(0) if limits.bits < 64 else kind(limits.min if limits.min else 1 << 63)
    return np.where(unknown, nothing, result)
