"""Signal values of a set of directions: how much of each concept is at a position, and how much images usually have.

Two ways to read them, both linear in ``x − E[x]``:

* ``paper``: each filter individually, ``α̂_i = w_i·(x − E[x]) / (w_i·s_i)`` (EDDP §3). Exact where ``w_i ⟂ s_j``; what two filters
  share is counted twice.
* ``joint`` [ours, default]: what the filters read of ``x − E[x]`` is what they would read of ``S α``: ``α = (GᵀG + λI)⁻¹ Gᵀ Ŵᵀ(x − E[x])``
  with ``Ŵ`` of unit columns, ``G = ŴᵀS``, λ = 0.01. It is the paper's own ``(WᵀS)⁺`` of manipulations constrained to the signals, with a ridge.

Measured, logit of the first class minus the second's, less the base: share of it that no concept explains (median over the store's images), R²
over all classes, and the sum of the absolute contributions over the difference (1: nothing cancels):

====================================  ====================  ====================
directions                            paper                 joint
====================================  ====================  ====================
generated scenes, EDDP, 48            26 %, 0.86, 1.9       10 %, 0.99, 1.3
generated scenes, k-means, 48         239 %, −7.7, 4.2      1 %, 1.00, 1.3
generated scenes, PCA, 48 (both ±)    100 %, 0.00, 2.4      1 %, 1.00, 1.2
MobileNetV2 / ImageNet, EDDP, 64      107 %, 0.25, 9.1      55 %, 0.82, 7.3
====================================  ====================  ====================

When the image is mirrored, the residual changes by 3 % (scenes) and 31 % (MobileNetV2) of the difference in ``paper``, by 1 % and 27 % in ``joint``.

The projection on only the signals, ``argmin ‖x − E[x] − Sα‖²``, leaves less still (0.4 % on the first row) but takes distractors for
concepts: on synthetic stores with known truth its RMSE is 0.24 to 0.58, that of ``joint`` 0.04 to 0.09, of ``paper`` 0.03 to 0.08.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stores.directions import Directions
from stores.errors import NonFiniteError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

Values = Literal["joint", "paper"]
RIDGE = 1e-2  # of unit filters and unit signal vectors
RANGE = (0.005, 0.995)  # quantiles of the store's images within which a signal value is usual
IMAGES = 20_000  # of the store that are looked at for that, at most
_AT_ONCE = 2**26  # numbers


def readout(directions: Directions, values: Values = "joint") -> np.ndarray:
    """What reads the signal values: (C, I) float64 R with ``α = (x − E[x]) R``.

    A direction whose filter is zero or orthogonal to its signal vector has the value 0 in ``paper``.
    """
    filters, signals = directions.filters.astype(np.float64), directions.signals.astype(np.float64)
    norms = np.linalg.norm(filters, axis=0)
    unit = filters / np.where(norms > 0, norms, 1)
    mixing = unit.T @ signals  # (I, I): what filter i reads of signal vector j
    if values == "paper":
        gain = np.diag(mixing)
        usable = np.abs(gain) > 1e-12
        return unit * np.where(usable, 1 / np.where(usable, gain, 1), 0)
    solved: np.ndarray = np.linalg.solve(mixing.T @ mixing + RIDGE * np.eye(directions.count), mixing.T @ unit.T)
    return solved.T


@dataclass(frozen=True)
class Usual:
    """Signal values that the store's images take, each the mean over an image's positions.

    ``spread`` (I,): standard deviation, never 0; ``low``, ``high`` (I,): the quantiles ``RANGE``; ``nonnegative``: no activation of these images is below 0, as
    behind a ReLU; ``images``: how many were looked at.
    """

    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    nonnegative: bool
    images: int


def usual_values(
    reader: LayerReader, directions: Directions, read: np.ndarray, *, seed: int = 0, progress: Progress = silent
) -> Usual:
    """Look at the store once (at most 20,000 images of it, drawn by the seed).

    Parameters
    ----------
    reader : of the directions' layer, all positions of each image.
    read : (C, I), of ``readout``.

    Raises
    ------
    UsageError
        The store holds a sample of each image's positions, or no readable image.
    NonFiniteError
        An activation is NaN or infinite; the message names the image.
    """
    pooled, lowest = [], np.inf
    for _, mean, least in pooled_images(reader, IMAGES, seed, "usual values", progress):
        lowest = min(lowest, least)
        pooled.append((mean.astype(np.float64) - directions.mean) @ read)
    values = np.concatenate(pooled)  # (n, I)
    spread = values.std(0)
    low, high = np.quantile(values, RANGE, axis=0)
    least = max(
        1e-6 * float(spread.max()), 1e-12
    )  # a direction that never varies must not be a change that costs nothing
    return Usual(np.maximum(spread, least), low, high, lowest >= 0, len(values))


def pooled_images(
    reader: LayerReader, count: int, seed: int, stage: str, progress: Progress = silent
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Mean activations of at most ``count`` images, drawn by the seed, in the store's order.

    Yields image numbers (n,), means over positions (n, C) float32, and the smallest activation, of some images at a time. Raises as
    ``usual_values`` does.
    """
    if reader.spec.sampled:
        raise UsageError(
            f"The store '{reader.store.path}' holds a sample of each image's positions, and how much of a concept an image has is a mean "
            "over all of them. Extract with --positions all to explain predictions."
        )
    rows = reader.image_indices
    if not len(rows):
        raise UsageError(f"The store '{reader.store.path}' has no readable image.")
    if len(rows) > count:
        rows = np.sort(np.random.default_rng([seed, 0xE8]).choice(rows, count, replace=False))
    each = max(1, _AT_ONCE // (reader.positions * reader.channels))
    for start in range(0, len(rows), each):
        part = rows[start : start + each]
        block = reader.images(part)  # (n, P, C)
        mean = block.mean(1, dtype=np.float32)
        if not np.isfinite(mean).all():
            bad = int(part[~np.isfinite(mean).all(1)][0])
            raise NonFiniteError(
                f"The store '{reader.store.path}' holds NaN or infinite activations, first for image '{reader.store.names[bad]}'. "
                "Extract again with --dtype float32, and look at that image."
            )
        yield part, mean, float(block.min())
        progress(stage, start + len(part), len(rows))
