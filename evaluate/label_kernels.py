"""The second pass over one image, compiled: detector by detector, row by row of the raster, while a histogram is in the nearest cache.

Importing this module takes a moment (numba), so it is imported where images are about to be counted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from stores.jit import OPTIONS, compiled

LANES = 32  # rows are filled up to a multiple of it, so that a loop over one has no remainder
ZERO, HALF = np.float32(0), np.float32(0.5)
# two counts in one number, so that one addition serves both: points where the label is not, and points where it is
OFF, ON, NONE, ALL = np.uint64(1), np.uint64(2**32), np.uint64(0), np.uint64(2**64 - 1)
MOST = np.uint64(2**32 - 1)  # of either


class Axis(NamedTuple):
    """An axis of a raster over a grid. Points alike in every picture, those beyond the outermost centres, are one place.

    ``cell``, ``share``: of each place, the grid cell before it and the weight of the next; ``place``: of each point.
    """

    cell: np.ndarray
    share: np.ndarray
    place: np.ndarray


def axis(cells: int, points: int) -> Axis:
    """As torch interpolates (bilinear, align_corners=False), in float32 as there."""
    ratio = np.float32(cells) / np.float32(points)
    at = np.maximum(ratio * (np.arange(points, dtype=np.float32) + HALF) - HALF, ZERO)
    cell = np.minimum(at.astype(np.int64), cells - 1)
    share = np.where(cell < cells - 1, at - cell.astype(np.float32), ZERO)
    first = np.flatnonzero(np.diff(cell + share.astype(float), prepend=-1))
    place = np.repeat(np.arange(len(first)), np.diff(first, append=points))
    return Axis(cell[first], share[first], place)


@njit(**OPTIONS)
def _weigh(maps, row, down, across, weights):  # type: ignore[no-untyped-def]
    """The points of each place, where the label of a row of ``maps`` is not and where it is; −1 for a label that is not there."""
    weights[:] = NONE
    columns, last = len(across.place), len(across.cell) - 1
    first = 0  # how many points the first place has more than one; all but the last have one
    while first + 1 < columns and across.place[first + 1] == 0:
        first += 1
    for y in range(len(down.place)):
        at, start = down.place[y], y * columns
        for x in range(first):
            weights[at, 0] += ON if row >= 0 and maps[row, start + x] else OFF
        for x in range(last + 1):
            weights[at, x] += ON if row >= 0 and maps[row, start + first + x] else OFF
        for x in range(first + last + 1, columns):
            weights[at, last] += ON if row >= 0 and maps[row, start + x] else OFF


@njit(**OPTIONS)
def _widen(cells, across, wide):  # type: ignore[no-untyped-def]
    """Each row of the grid (h, w) at all places across."""
    for y in range(cells.shape[0]):
        for x in range(len(across.cell)):
            left = across.cell[x]
            a, b = cells[y, left], cells[y, min(left + 1, cells.shape[1] - 1)]
            wide[y, x] = a + across.share[x] * (b - a)


@njit(**OPTIONS)
def _count(wide, down, weights, line, histogram):  # type: ignore[no-untyped-def]
    """Add each place's points to its bin; ``line`` is memory for the bins of one row."""
    last = np.uint32(len(histogram) - 1)
    for y in range(len(down.cell)):
        share, upper = down.share[y], down.cell[y]
        lower = min(upper + 1, len(wide) - 1)
        for x in range(len(line)):
            line[x] = min(np.uint32(wide[upper, x] + share * (wide[lower, x] - wide[upper, x])), last)
        for x in range(weights.shape[1]):
            histogram[line[x]] += weights[y, x]


@njit(**OPTIONS)
def _positive(wide, down, weights, united, kept):  # type: ignore[no-untyped-def]
    """The points above 0, and those of them or ``united``, which become the latter; ``kept`` is 0 to forget them first."""
    own = union = NONE
    for y in range(len(down.cell)):
        share, upper = down.share[y], down.cell[y]
        lower = min(upper + 1, len(wide) - 1)
        for x in range(weights.shape[1]):
            above = wide[upper, x] + share * (wide[lower, x] - wide[upper, x]) > ZERO
            points = weights[y, x] if above else NONE
            either = points | (united[y, x] & kept)
            united[y, x] = either
            own += points
            union += either
    return own, union


@compiled
def count_image(bins, logits, positive, down, across, maps, units, rows, groups, histograms, unions):  # type: ignore[no-untyped-def]
    """Add an image's points to ``histograms`` (J, bins) of some detectors, as pairs of counts; and count what is above 0.

    Parameters
    ----------
    bins, logits : (t, h, w) on the grid; bins with their fractions, from 0 to the last.
    positive : (t,) of which detectors what is above 0 is counted.
    down, across : the axes of the raster.
    maps : (l, points) where each label of the image is.
    units, rows, groups : (t,) each detector, the row of its label among ``maps``, its group, −1 for none of these; those of
        one label are neighbours, and so are those of one group.
    unions : how many groups there are.

    Returns
    -------
    own : (t,) pairs of counts: points of each detector.
    union : (U,) pairs of counts: points of each group's detectors together.
    """
    own, union = np.zeros(len(units), np.uint64), np.zeros(unions, np.uint64)
    places = len(across.cell)
    absent, united = np.empty((len(down.cell), places), np.uint64), np.zeros((len(down.cell), places), np.uint64)
    present = absent.copy()
    _weigh(maps, -1, down, across, absent)
    wide = np.zeros((bins.shape[1], -(-places // LANES) * LANES), np.float32)
    line = np.empty(wide.shape[1], np.uint32)
    row = group = -1
    for k in range(len(units)):
        if 0 <= rows[k] != row:
            row = rows[k]
            _weigh(maps, row, down, across, present)
        weights = present if rows[k] >= 0 else absent
        _widen(bins[k], across, wide)
        _count(wide, down, weights, line, histograms[units[k]])
        if positive[k]:
            _widen(logits[k], across, wide)
            kept = ALL if 0 <= groups[k] == group else NONE
            own[k], either = _positive(wide, down, weights, united, kept)
            group = groups[k]
            if group >= 0:
                union[group] = either
    return own, union
