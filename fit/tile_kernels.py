"""What is done to a tile of logits on a processor, compiled: a few rows at a time, while they are in the nearest cache.

As separate passes over a tile this arithmetic would take longer than the matrix products around it. Importing this module
takes a moment (numba), so it is imported where the first tile is about to be visited. The float64 kernels are exact, the
float32 ones good to about 2e-7 a logit. NaN stays NaN: a fit looks for it in its results.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import overload

from stores.jit import OPTIONS, compiled

LN2 = math.log(2.0)
BLOCK, ROWS = 4096, 64  # logits and rows worked on at a time; only their column sums are taken in the logits' precision
PACK = np.uint64(0x0102040810204080)  # times eight bytes of 0 or 1: eight bits, in the highest byte

# float32 constants: with a Python number the arithmetic would be done in float64
ZERO, ONE, FAINT = np.float32(0), np.float32(1), np.float32(1e-30)
LOWEST = np.float32(-88)  # from here on exp is 0
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1 / LN2), np.float32(0.693145751953125), np.float32(1.42860682030941723e-6)
SHIFT = np.float32(1.5 * 2**23 + 127)  # adding it rounds to integers, and leaves 2^x's exponent in the lowest bits
# Cephes' expf on ±ln 2 / 2; log1p(e) / e on 0..1 from its Chebyshev series: both to the last digit or two of float32
E2, E3, E4, E5, E6, E7 = np.array(
    [0.50000001201, 0.16666665459, 0.041665795894, 0.0083334519073, 0.0013981999507, 0.000198756915], np.float32
)
L0, L1, L2, L3, L4 = np.array([0.99999997054, -0.49999501517, 0.33319271343, -0.2484436989, 0.19111431081], np.float32)
L5, L6, L7, L8 = np.array([-0.13674769705, 0.078361668009, -0.029588507387, 0.0052534577954], np.float32)


def exp(x: float) -> float:
    """``e^x`` for x ≤ 0, NaN for NaN; in float32 by a polynomial that vectorises, 0 below −87.7."""
    return math.exp(x)


def log1p(e: float) -> float:
    """``ln(1 + e)`` for 0 ≤ e ≤ 1, NaN for NaN; in float32 by a polynomial that vectorises."""
    return math.log1p(e)


# only "contract": reassociated, x + SHIFT − SHIFT would be x
@overload(exp, jit_options={"fastmath": {"contract"}})
def _exp(x: Any) -> Any:
    def wide(x: Any) -> Any:
        return math.exp(x)

    def narrow(x: Any) -> Any:
        x = LOWEST if x < LOWEST else x
        shifted = x * LOG2E + SHIFT
        whole = shifted - SHIFT
        r = x - whole * LN2_HIGH - whole * LN2_LOW
        p = ((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + E2
        power = np.int32(np.float32(shifted).view(np.int32) << 23).view(np.float32)  # 2^whole
        return (p * (r * r) + (r + ONE)) * power

    return narrow if x == types.float32 else wide


@overload(log1p, jit_options={"fastmath": {"contract"}})
def _log1p(e: Any) -> Any:
    def wide(e: Any) -> Any:
        return math.log1p(e)

    def narrow(e: Any) -> Any:
        p = (((((((L8 * e + L7) * e + L6) * e + L5) * e + L4) * e + L3) * e + L2) * e + L1) * e + L0
        return p * e

    return narrow if e == types.float32 else wide


@njit(**OPTIONS)
def _rows(z, steep, surprise, total, weighted):  # type: ignore[no-untyped-def]
    """Of each row of z: Σ y in ``total``, Σ −y ln y in ``weighted``, y (1 − y) in ``steep`` and −ln y in ``surprise``."""
    faintest = total.dtype.type(math.inf)
    for p in range(z.shape[0]):
        light = dim = z.dtype.type(0)
        for i in range(z.shape[1]):
            e = exp(-abs(z[p, i]))
            part = ONE / (ONE + e)
            y = part if z[p, i] >= ZERO else e * part
            s = log1p(e) + (ZERO if z[p, i] >= ZERO else -z[p, i])  # softplus(−z), never −log(sigmoid(z))
            steep[p, i] = e * part * part
            surprise[p, i] = s
            light += y
            dim += y * s
        total[p], weighted[p] = light, dim
        faintest = light if light < faintest else faintest
    return faintest


@njit(**OPTIONS)
def _dark_rows(steep, surprise, total, weighted, least):  # type: ignore[no-untyped-def]
    """The same for rows dark to all detectors, with y relative to that of the least dark one: shares are still exact."""
    for p in range(len(least)):
        if total[p] < FAINT:
            least[p] = surprise[p].min()
            total[p] = weighted[p] = 0
            for i in range(steep.shape[1]):
                s = surprise[p, i] - least[p]
                y = exp(-s)
                steep[p, i] = y
                surprise[p, i] = s
                total[p] += y
                weighted[p] += y * s


@njit(**OPTIONS)
def _terms(z, steep, surprise, total, mean, least, entropy):  # type: ignore[no-untyped-def]
    """Of each row of z, natural logarithms: −ln y = ``surprise`` + ``least``, its ``mean`` Σ q ``surprise``, the ``entropy``;
    q (1 − y) = ``steep`` / ``total``."""
    least[:] = 0
    if _rows(z, steep, surprise, total, mean) < FAINT:
        _dark_rows(steep, surprise, total, mean, least[: len(z)])
    for p in range(len(z)):
        mean[p] /= total[p]
        entropy[p] = math.log(total[p]) + mean[p]


@njit(**OPTIONS)
def _buffers(z):  # type: ignore[no-untyped-def]
    shape = (max(1, min(BLOCK // z.shape[1], ROWS, len(z))), z.shape[1])
    return np.empty(shape, z.dtype), np.empty(shape, z.dtype), np.empty((7, shape[0]), z.dtype)


@compiled
def visit(z, gamma, on_entropy, on_activation, by_fourth, by_third, column, thresholds):  # type: ignore[no-untyped-def]
    """The losses of the logits z (t, I) and their gradient dz, written over them.

    The gradient by a row's entropy ℓ is ``on_entropy + by_fourth ℓ⁴ − by_third ℓ³``, by its maximum activation
    ``on_activation``. Adds Σ y^γ to ``column`` (I,) and Σ dz to ``thresholds`` (I,); returns Σ ℓ and Σ L_ma.
    """
    steep, surprise, of_rows = _buffers(z)
    total, mean, least, entropy, by_surprise, constant, scale = of_rows
    powers, slopes = np.zeros_like(z[0]), np.zeros_like(z[0])
    power = z.dtype.type(-gamma)
    entropies = activations = 0.0
    for start in range(0, len(z), len(total)):
        rows = z[start : start + len(total)]
        _terms(rows, steep, surprise, total, mean, least, entropy)
        for p in range(len(rows)):
            bits = entropy[p] / LN2
            entropies += bits
            activations += (mean[p] + least[p]) / LN2
            both = on_entropy + (by_fourth * bits - by_third) * bits * bits * bits + on_activation
            # dz = (1 − y) q (both · (−ln y) − on_activation − both · L_ma,p) / ln 2, with L_ma,p as −ln y
            by_surprise[p] = both / (LN2 * total[p])
            constant[p] = (on_activation + both * mean[p]) / (LN2 * total[p])
            scale[p] = exp(power * least[p])
        for p in range(len(rows)):
            factor, less, level = by_surprise[p], constant[p], scale[p]
            for i in range(z.shape[1]):
                powers[i] += level * exp(power * surprise[p, i])
                slope = steep[p, i] * (surprise[p, i] * factor - less)
                slopes[i] += slope
                rows[p, i] = slope
        column += powers
        thresholds += slopes
        powers[:] = 0
        slopes[:] = 0
    return entropies, activations


@compiled
def bound(z):  # type: ignore[no-untyped-def]
    """``Σ_p ℓ_p^4`` and ``Σ_p ℓ_p^5`` of the logits z (t, I)."""
    steep, surprise, of_rows = _buffers(z)
    total, mean, least, entropy = of_rows[:4]
    fourth = fifth = 0.0
    for start in range(0, len(z), len(total)):
        rows = z[start : start + len(total)]
        _terms(rows, steep, surprise, total, mean, least, entropy)
        for p in range(len(rows)):
            bits = entropy[p] / LN2
            fourth += bits * bits * bits * bits
            fifth += bits * bits * bits * bits * bits
    return fourth, fifth


@compiled
def fade(z, gamma, thresholds):  # type: ignore[no-untyped-def]
    """``y^γ (1 − y)``, the slope of y^γ / γ by z, written over the logits z (t, I); adds its sum to ``thresholds`` (I,)."""
    slopes = np.zeros_like(z[0])
    power, size = z.dtype.type(-gamma), max(1, min(BLOCK // z.shape[1], ROWS))
    for start in range(0, len(z), size):
        rows = z[start : start + size]
        for p in range(len(rows)):
            for i in range(z.shape[1]):
                e = exp(-abs(rows[p, i]))
                s = log1p(e) + (ZERO if rows[p, i] >= ZERO else -rows[p, i])
                slope = exp(power * s) * (e if rows[p, i] >= ZERO else ONE) / (ONE + e)
                slopes[i] += slope
                rows[p, i] = slope
        thresholds += slopes
        slopes[:] = 0


@compiled
def find(z, found, ends):  # type: ignore[no-untyped-def]
    """The detectors with z > 0, row after row of z (t, I), in ``found`` (t · I,); where each row's end, in ``ends`` (t,)."""
    flags = np.zeros(-(-z.shape[1] // 64) * 64, np.uint8)
    words = flags.view(np.uint64)
    count = 0
    for p in range(len(z)):
        for i in range(z.shape[1]):
            flags[i] = z[p, i] > ZERO
        for w in range(0, len(words), 8):
            mask = np.uint64(0)
            for k in range(8):
                mask |= ((words[w + k] * PACK) >> np.uint64(56)) << np.uint64(8 * k)
            while mask:
                found[count] = 8 * w + trailing_zeros(mask)  # type: ignore[call-arg]
                count += 1
                mask &= mask - np.uint64(1)
        ends[p] = count
    return count


@compiled
def add(y, z, found, ends, first, last, values, pairs, moments, rows, cross, together):  # type: ignore[no-untyped-def]
    """Adds the positives of the detectors first..last−1, as ``find`` left them in pieces: row k of ``found`` and ``ends`` each.

    ``moments`` (3, I): how many, Σz, Σz²; ``rows``, ``cross`` (I, r): Σy, Σzy; ``together`` (I, I): with which others.
    """
    size = ends.shape[1]
    for p in range(len(y)):
        piece, at = p // size, p % size
        start, stop = ends[piece, at - 1] if at else 0, ends[piece, at]
        for k in range(start, stop):
            i = found[piece, k]
            if first <= i < last:
                moments[0, i] += 1
                for c in range(y.shape[1]):
                    rows[i, c] += y[p, c]
                if pairs:
                    for other in range(start, stop):
                        together[i, found[piece, other]] += 1
                if values:
                    value = z[p, i]
                    moments[1, i] += value
                    moments[2, i] += value * value
                    for c in range(y.shape[1]):
                        cross[i, c] += value * y[p, c]
