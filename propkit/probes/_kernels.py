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

_RUN = 1024
"""Values that float32 sums may hold before they go on in float64."""
_ROWS = 64
"""Rows after which it pays to see whether the search is over."""
_SIGN, _LEAST = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
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


@_compile(types.float64(_values, _size))
def _square_sum(data, n):
    x = numba.carray(data, (n,))
    total = 0.0
    for begin in range(0, n, _RUN):
        part = np.float32(0)
        for value in x[begin : begin + _RUN]:
            part += value * value
        total += float(part)
    return total


@numba.njit(fastmath=_ASSUMING, inline="never")
def _run(x, bits):
    total, squares, absolutes = np.float32(0), np.float32(0), np.float32(0)
    largest, nonzero = (
        _LEAST,
        np.float32(0),
    )  # a count in int32 becomes one in int64, at half the speed
    for i in range(len(x)):
        value = x[i]
        total += value
        squares += value * value
        absolutes += abs(value)
        largest = max(largest, bits[i])  # of integers: one instruction for eight
        nonzero += np.float32(value != 0)
    return total, squares, absolutes, largest, nonzero


@_compile(types.void(_values, _patterns, _results, _size))
def _statistics(data, patterns, results, n):
    x, bits, result = (
        numba.carray(data, (n,)),
        numba.carray(patterns, (n,)),
        numba.carray(results, (5,)),
    )
    total, squares, absolutes, largest, nonzero = 0.0, 0.0, 0.0, _LEAST, 0.0
    for begin in range(0, n, _RUN):
        t, s, a, m, z = _run(x[begin : begin + _RUN], bits[begin : begin + _RUN])
        total += t
        squares += s
        absolutes += a
        largest = max(largest, m)
        nonzero += z
    if largest < 0:  # all are negative, and the bits of negative numbers grow with their size
        result[3] = x.max()
    else:
        result[3] = np.int32(largest).view(np.float32)
    result[0], result[1], result[2], result[4] = total, squares, absolutes, nonzero


@numba.njit
def _is_zero(bits):
    """Whether all are 0 or -0."""
    found = np.int32(0)
    for pattern in bits:
        found |= pattern
    return found & _SIGN == 0


@_compile(types.int64(_patterns, _size, _size, _size))
def _zero_units(patterns, outer, units, inner):
    zero = 0
    if inner == 1:
        rows = numba.carray(patterns, (outer, units))
        seen = np.zeros(units, np.int32)
        for begin in range(0, outer, _ROWS):
            for row in rows[begin : begin + _ROWS]:
                for unit in range(units):
                    seen[unit] |= row[unit]
            zero = (seen & _SIGN == 0).sum()
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


_address, _count = ctypes.c_void_p, ctypes.c_int64
square_sum = ctypes.CFUNCTYPE(ctypes.c_double, _address, _count)(_square_sum.address)
"""Sum of squares of n values: (address, n)."""
statistics = ctypes.CFUNCTYPE(None, _address, _address, _address, _count)(_statistics.address)
"""Statistics of n values: (address, the same address, that of five float64 results, n).

The results: sum, sum of squares, sum of absolute values, largest value, number of values that are not 0. Where a value
is NaN, so are the sums, and the largest value means nothing.
"""
zero_units = ctypes.CFUNCTYPE(_count, _address, _count, _count, _count)(_zero_units.address)
"""Number of units all of whose values are 0: (address, outer, units, inner) of an array of that shape."""
