"""The largest logits of a row, compiled: numpy's and torch's selections take longer than the product that gives the logits.

Importing this module takes a moment (numba), so it is imported where the first codes are selected.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros

from fit.tile_kernels import OPTIONS, compiled


@njit(**OPTIONS)
def _bound(values, k):  # type: ignore[no-untyped-def]
    """The k-th largest of ``values``, or less where bisection finds a number that parts them; NaN counts as largest."""
    low = high = values[0]
    for v in values:
        low = v if v < low else low
        high = v if v > high else high
    while True:  # at least k values are not below low
        middle = low + (high - low) / values.dtype.type(2)
        if not low < middle < high:
            break
        count = 0
        for v in values:
            count += not v < middle
        if count == k:
            return middle
        if count > k:
            low = middle
        else:
            high = middle
    count = 0
    for v in values:
        count += not v < high
    return high if count >= k else low


@compiled
def largest(z, unit, value):  # type: ignore[no-untyped-def]
    """The units of the k largest logits of each row of z (t, I), ascending, in ``unit`` (t, k); in ``value`` what is positive of them.

    Few logits are not below the k-th largest of the maxima of many groups: only those are compared with each other. Of equal
    ones the first units are taken. NaN counts as largest and stays NaN.
    """
    k, units = unit.shape[1], z.shape[1]
    groups = -(-4 * k // 64) * 64
    highest = np.empty(min(groups, units), z.dtype)
    found, among = np.empty(units, np.int64), np.empty(units, z.dtype)
    flags = np.zeros(-(-units // 8) * 8, np.uint8)
    words = flags.view(np.uint64)
    for p in range(len(z)):
        row = z[p]
        highest[:] = row[: len(highest)]
        for start in range(groups, units, groups):
            part = row[start : start + groups]
            for i in range(len(part)):
                highest[i] = part[i] if part[i] > highest[i] else highest[i]
        bound = _bound(highest, k)
        for i in range(units):
            flags[i] = not row[i] < bound
        count = 0
        for w in range(len(words)):
            word = words[w]
            while word:  # a byte of 1 for each that is found
                found[count] = 8 * w + (trailing_zeros(word) >> 3)  # type: ignore[call-arg]
                among[count] = row[found[count]]
                count += 1
                word &= word - np.uint64(1)
        least = _bound(among[:count], k)
        equal = k
        for v in among[:count]:
            equal -= not v <= least
        taken = 0
        for c in range(count):
            v = among[c]
            if taken < k and (not v <= least or (v == least and equal > 0)):
                equal -= v == least
                unit[p, taken] = found[c]
                value[p, taken] = z.dtype.type(0) if v < 0 else v
                taken += 1
