"""Loops over float32 values in memory, compiled by Numba; importing this file needs it (the extra ``propkit[cpu]``).

They take addresses, since to wrap a tensor in an array takes longer than to read a small one.
"""

# Numba compiles the functions' bodies; it takes no annotations.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

_RUN = 512
"""Values, of each of four places, that float32 sums may hold before they go on in float64."""
_ROWS = 64
"""Rows after which it pays to see whether the search is over."""
_ALL_BUT_SIGN, _LEAST = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
_ASSUMING = {"reassoc", "nsz", "arcp", "contract"}
"""What the compiler may assume; not that there is no NaN or inf, which a network that diverges has."""

_values, _patterns, _results = map(types.CPointer, (types.float32, types.int32, types.float64))
_size = types.int64


def _compile(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for calls by address, once per machine where there is a place to keep the result."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.cfunc(signature, cache=True, fastmath=_ASSUMING)(function)
        except RuntimeError:  # nowhere to write
            return numba.cfunc(signature, fastmath=_ASSUMING)(function)

    return decorate


# Signals are read from four places at once: a memory that is asked for one place alone answers more slowly.


@numba.njit(fastmath=_ASSUMING, inline="never")
def _run_of_squares(x0, x1, x2, x3):
    total = np.float32(0)
    for i in range(len(x0)):
        total += (x0[i] * x0[i] + x1[i] * x1[i]) + (x2[i] * x2[i] + x3[i] * x3[i])
    return total


@_compile(types.float64(_values, _size))
def _square_sum(data, n):
    x, q = numba.carray(data, (n,)), n // 4
    total = 0.0
    for i in range(0, q, _RUN):
        j = min(i + _RUN, q)
        total += _run_of_squares(
            x[i:j], x[q + i : q + j], x[2 * q + i : 2 * q + j], x[3 * q + i : 3 * q + j]
        )
    for value in x[4 * q :]:
        total += value * value
    return total


@numba.njit(fastmath=_ASSUMING, inline="never")
def _run(x0, x1, x2, x3, bits0, bits1, bits2, bits3):
    total, squares, absolutes = np.float32(0), np.float32(0), np.float32(0)
    # A count in int32 becomes one in int64, at half the speed.
    largest, nonzero = _LEAST, np.float32(0)
    for i in range(len(x0)):
        a, b, c, d = x0[i], x1[i], x2[i], x3[i]
        total += (a + b) + (c + d)
        squares += (a * a + b * b) + (c * c + d * d)
        absolutes += (abs(a) + abs(b)) + (abs(c) + abs(d))
        # of integers: one instruction for eight
        largest = max(max(largest, bits0[i]), max(bits1[i], max(bits2[i], bits3[i])))
        nonzero += (np.float32(a != 0) + np.float32(b != 0)) + (
            np.float32(c != 0) + np.float32(d != 0)
        )
    return total, squares, absolutes, largest, nonzero


@numba.njit
def _is_zero(bits):
    """Whether all are 0 or -0."""
    found = np.int32(0)
    for pattern in bits:
        found |= pattern
    return found & _ALL_BUT_SIGN == 0


@numba.njit
def _zero_units(patterns, outer, units, inner):
    zero = 0
    if inner == 1:
        rows = numba.carray(patterns, (outer, units))
        seen = np.zeros(units, np.int32)
        for begin in range(0, outer, _ROWS):
            for row in rows[begin : begin + _ROWS]:
                for unit in range(units):
                    seen[unit] |= row[unit]
            zero = (seen & _ALL_BUT_SIGN == 0).sum()
            if zero == 0:
                break
        return zero
    bits = numba.carray(patterns, (outer, units, inner))
    for unit in range(units):
        for sample in range(outer):
            if not _is_zero(bits[sample, unit]):
                break
        else:
            zero += 1
    return zero


@_compile(types.void(_values, _patterns, _results, _size, _size, _size))
def _statistics(data, patterns, results, outer, units, inner):
    n = outer * units * inner
    x, bits, q = numba.carray(data, (n,)), numba.carray(patterns, (n,)), n // 4
    result = numba.carray(results, (6,))
    total, squares, absolutes, largest, nonzero = 0.0, 0.0, 0.0, _LEAST, 0.0
    for i in range(0, q, _RUN):
        j = min(i + _RUN, q)
        t, s, a, m, z = _run(
            x[i:j], x[q + i : q + j], x[2 * q + i : 2 * q + j], x[3 * q + i : 3 * q + j],
            bits[i:j], bits[q + i : q + j], bits[2 * q + i : 2 * q + j], bits[3 * q + i : 3 * q + j],
        )  # fmt: skip
        total += t
        squares += s
        absolutes += a
        largest = max(largest, m)
        nonzero += z
    for i in range(4 * q, n):
        value = np.float64(x[i])
        total += value
        squares += value * value
        absolutes += abs(value)
        largest = max(largest, bits[i])
        nonzero += value != 0
    if largest < 0:  # all are negative, and the bits of negative numbers grow with their size
        result[3] = x.max()
    else:
        result[3] = np.int32(largest).view(np.float32)
    result[0], result[1], result[2], result[4] = total, squares, absolutes, nonzero
    result[5] = _zero_units(patterns, outer, units, inner)


@_compile(types.void(_values, _results, _size, _size))
def _directions(data, results, filters, size):
    x, result = numba.carray(data, (filters, size)), numba.carray(results, (2,))
    total, directed = np.zeros(size), 0.0
    for row in x:
        squares = 0.0
        for value in row:
            squares += np.float64(value) * np.float64(value)
        if squares != 0:  # or is NaN
            scale = 1 / np.sqrt(squares)
            for i in range(size):
                total[i] += scale * row[i]
            directed += 1
    result[0], result[1] = (total * total).sum(), directed


_address, _count = ctypes.c_void_p, ctypes.c_int64
square_sum = ctypes.CFUNCTYPE(ctypes.c_double, _address, _count)(_square_sum.address)
"""Sum of squares of n values: (address, n)."""
statistics = ctypes.CFUNCTYPE(None, *[_address] * 3, *[_count] * 3)(_statistics.address)
"""Statistics of values of the shape (outer, units, inner): (address, again, that of six float64 results, *shape).

The results: sum, sum of squares, sum of absolute values, largest value, number of values that are not 0, and of units
all of whose values are 0. Where a value is NaN, so are the sums, and the largest value means nothing.
"""
directions = ctypes.CFUNCTYPE(None, *[_address] * 2, *[_count] * 2)(_directions.address)
"""Sum of the directions of filters, one a row: (address, that of two float64 results, number of filters, size of one).

The results: the square of that sum's norm, and the number of filters that are not 0.
"""
