"""The largest absolute value of an array, and whether all of it is finite, at the speed of the memory."""

from __future__ import annotations

import numpy as np

BLOCK = 2**18  # values looked at at a time


def extremes(x: np.ndarray) -> tuple[float, int]:
    """The largest finite absolute value, and how many values are NaN or infinite.

    By their bits, in two passes without a copy: as integers, positive floats lie in their own order, and so do negative
    ones read as unsigned; what is not finite lies above the bits of infinity.
    """
    signed, unsigned = (np.int16, np.uint16) if x.dtype == np.float16 else (np.int32, np.uint32)
    infinity = int(np.array(np.inf, x.dtype).view(signed))
    sign = int(np.iinfo(signed).max) + 1
    flat = np.ascontiguousarray(x).reshape(-1)
    peak, nonfinite = 0, 0
    for start in range(0, len(flat), BLOCK):  # so that the second pass finds the block in the cache
        block = flat[start : start + BLOCK]
        top, low = int(block.view(signed).max()), int(block.view(unsigned).max()) - sign
        if max(top, low) >= infinity:
            finite = np.isfinite(block)
            nonfinite += int(block.size - np.count_nonzero(finite))
            magnitudes = block[finite].view(unsigned) & np.array(sign - 1, unsigned)
            top, low = int(magnitudes.max(initial=0)), 0
        peak = max(peak, top, low)
    return float(np.array(peak, unsigned).view(x.dtype)), nonfinite
