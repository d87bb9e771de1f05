"""The C++ graph core against slow Python twins."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

from lrp_fast import _native

INF = float("inf")
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def topk_twin(values: np.ndarray, k: int) -> list[int]:
    """What topk_magnitude promises, in the words of its documentation."""
    magnitudes = [abs(value) for value in values.tolist()]
    return sorted(range(len(magnitudes)), key=lambda index: (-magnitudes[index], index))[:k]


def check_topk(values: np.ndarray, k: int) -> None:
    before = values.copy()
    indices = _native.topk_magnitude(values, k)
    assert indices.dtype == np.int64
    assert indices.shape == (min(k, values.size),)
    assert indices.tolist() == topk_twin(values, k)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 63, 64, 65, 111, 1000])
def test_topk_of_random_values(n):
    rng = np.random.default_rng(n)
    values = rng.standard_normal(n, dtype=np.float32)
    for k in {0, 1, 2, n // 3, n - 1, n, n + 1, 10 * n + 7} - {-1}:
        check_topk(values, k)


@pytest.mark.parametrize("n", [7, 111, 2000])
def test_topk_breaks_ties_by_the_lower_index(n):
    rng = np.random.default_rng(n)
    few_magnitudes = rng.choice(np.float32([-3, -1, -0.0, 0, 0.5, 1, 3]), n)
    all_equal = rng.choice(np.float32([-2, 2]), n)
    for k in range(0, n + 1, max(1, n // 40)):
        check_topk(few_magnitudes, k)
        check_topk(all_equal, k)


def test_topk_ties_the_two_zeros():
    assert _native.topk_magnitude(np.float32([-0.0, 0.0, -0.0, 0.0]), 3).tolist() == [0, 1, 2]
    assert _native.topk_magnitude(np.float32([0.0, -0.0, SMALLEST]), 3).tolist() == [2, 0, 1]


def test_topk_orders_infinity_above_everything():
    values = np.float32([3e38, -INF, 1, INF, -3.4028235e38, -INF])
    assert _native.topk_magnitude(values, 6).tolist() == [1, 3, 5, 4, 0, 2]
    assert _native.topk_magnitude(values, 2).tolist() == [1, 3]


@pytest.mark.parametrize("flush", [False, True])
def test_topk_orders_denormals_even_where_the_processor_flushes_them(flush):
    values = np.float32([1, -2, 3, 0, -1, 2, 3, -3]) * np.float32(SMALLEST)
    expected = topk_twin(values, 5)
    assert expected == [2, 6, 7, 1, 5]
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        indices = _native.topk_magnitude(values, 5)
    finally:
        torch.set_flush_denormal(False)
    assert indices.tolist() == expected


def test_topk_where_only_one_bit_of_the_magnitude_differs():
    # Every bit of the 31 decides at least one comparison, on either side of where the selection splits the key.
    powers = (np.uint32(1) << np.arange(31, dtype=np.uint32)).view(np.float32)
    neighbours = (np.uint32(0x3F80_0000) + np.arange(-300, 300, dtype=np.int64)).astype(np.uint32).view(np.float32)
    steps = (np.uint32(0x3F80_0000) + 0x8000 * np.arange(-9, 9, dtype=np.int64)).astype(np.uint32).view(np.float32)
    for values in (powers[np.isfinite(powers)], neighbours, steps):
        shuffled = np.random.default_rng(0).permutation(values)
        for k in range(0, values.size + 1, 3):
            check_topk(shuffled, k)


def test_topk_of_a_million():
    values = np.random.default_rng(1).standard_normal(1_000_000, dtype=np.float32) ** 5
    values[::3] = values[1::3].mean()  # a third of the values tie
    expected = topk_twin(values, values.size)
    for k in (1000, 700_001):
        assert _native.topk_magnitude(values, k).tolist() == expected[:k]


def test_topk_takes_slices_and_read_only_arrays():
    values = np.random.default_rng(2).standard_normal(101, dtype=np.float32)
    check_topk(values[13:77], 20)
    values.setflags(write=False)
    check_topk(values, 20)
    check_topk(values, np.int32(20))


def unaligned(n: int) -> np.ndarray:
    return np.frombuffer(bytearray(4 * n + 1), dtype=np.float32, offset=1, count=n)


@pytest.mark.parametrize(
    ("values", "k", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), 1, ValueError, "values must have 1 dimension, not 2"),
        (np.zeros((), np.float32), 1, ValueError, "values must have 1 dimension, not 0"),
        (np.zeros(3), 1, TypeError, "values must be a float32 array, not float64"),
        (np.zeros(3, np.int32), 1, TypeError, "values must be a float32 array, not int32"),
        (np.zeros(3, np.dtype(np.float32).newbyteorder()), 1, TypeError, "values must be a float32 array, not [<>]f4"),
        ([1.0, 2.0], 1, TypeError, "values must be a float32 numpy array, not list"),
        (torch.zeros(3), 1, TypeError, "values must be a float32 numpy array, not Tensor"),
        (None, 1, TypeError, "values must be a float32 numpy array, not NoneType"),
        (np.zeros(6, np.float32)[::2], 1, ValueError, r"values must be contiguous .* numpy\.array\(values\)"),
        (np.zeros(6, np.float32)[::-1], 1, ValueError, "values must be contiguous"),
        (unaligned(6), 1, ValueError, "values must be contiguous and aligned"),
        (np.zeros(3, np.float32), -1, ValueError, "k must not be negative, and -1 is"),
        (np.zeros(3, np.float32), -(10**30), ValueError, "k must not be negative"),
        (np.zeros(3, np.float32), 1.0, TypeError, "k must be an integer, not float"),
        (np.zeros(3, np.float32), "1", TypeError, "k must be an integer, not str"),
        (np.float32([0, 1, np.nan, np.nan]), 1, ValueError, "values must not hold a NaN, and the one at index 2 is"),
        (-np.float32([0, np.nan]), 0, ValueError, "values must not hold a NaN, and the one at index 1 is"),
    ],
)
def test_topk_says_what_is_wrong(values, k, error, message):
    with pytest.raises(error, match=f"^{message}") as raised:
        _native.topk_magnitude(values, k)
    assert "\n" not in str(raised.value)


def test_topk_takes_any_large_k():
    assert _native.topk_magnitude(np.float32([1, 2]), 10**30).tolist() == [1, 0]


def test_topk_releases_the_interpreter_lock():
    values = np.ones(20_000_000, np.float32)
    turns = 0
    stop = False

    def spin():
        nonlocal turns
        while not stop:
            turns += 1
            time.sleep(0)  # gives the lock away

    other = threading.Thread(target=spin)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to give the lock away
    try:
        other.start()
        before = turns
        _native.topk_magnitude(values, 10)  # a small k: numpy lets go of the lock where it copies a large result
        after = turns
    finally:
        stop = True
        sys.setswitchinterval(interval)
        other.join()
    assert after > before
