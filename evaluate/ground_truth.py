"""Directions against a synthetic store's truth: which concept each one found, and how well both directions fit it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from stores.attachments import Truth
from stores.directions import Directions
from stores.readers import LayerReader


def positives(directions: Directions, z: np.ndarray) -> np.ndarray:
    """(n, I) bool: ``z > 0``, or the top quantile of each unit where there are no thresholds."""
    if directions.thresholds is not None:
        return z > 0
    keep = max(1, round(directions.quantile * len(z)))
    threshold = -np.sort(-z, axis=0)[min(keep, len(z) - 1)]
    return z > threshold


def ideal_filters(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The linear readout of each true signal value with the least squared error: ``cov(x)⁺ cov(x, α)``.

    It is the backward model that belongs to the signal vectors (Haufe et al. 2014, NeuroImage 87, doi
    10.1016/j.neuroimage.2013.10.067); without noise, and with no more directions than channels, the columns of S and D's
    pseudo-inverse.

    Parameters
    ----------
    x : (n, C) activations.
    values : (n, I*) true signal values α.

    Returns
    -------
    (C, I*) float64, not normalised.
    """
    centred = x - x.mean(0, dtype=np.float64)
    inverse = np.linalg.pinv(centred.T @ centred, rcond=1e-9, hermitian=True)
    filters: np.ndarray = inverse @ (centred.T @ (values - values.mean(0, dtype=np.float64)))
    return filters


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(I,) cosine of each column of ``a`` (C, I) with the same column of ``b`` (C, I); 0 where one of them is 0."""
    lengths = np.linalg.norm(a, axis=0).astype(np.float64) * np.linalg.norm(b, axis=0)
    cos: np.ndarray = (a * b).sum(0, dtype=np.float64) / np.maximum(lengths, 1e-12)
    return cos


def distinct_matches(iou: np.ndarray) -> float:
    """Share of the concepts, rows of ``iou`` (I*, I), whose direction of largest IoU is no other concept's."""
    best = iou.argmax(1)
    return float((np.bincount(best)[best] == 1).mean())


def against_truth(directions: Directions, reader: LayerReader, truth: Truth) -> dict[str, Any]:
    """Match detectors with concepts (Hungarian, by IoU) and compare.

    Returns ``iou``, ``cos`` (signal vector with the true one) and ``filter_cos`` (filter with the concept's ideal one, see
    ``ideal_filters``) per true concept in order, ``matched``: concepts with a detector of IoU > 0.5, ``distinct_matches``: share of
    concepts whose direction of largest IoU is no other concept's, ``rmse``: root mean square difference of signal values ``α̂ − (α − E[α])`` over the matched
    pairs and all positions, and ``match``: each concept's direction (−1: fewer directions than concepts).
    """
    directions.check_store(reader.spec.name, reader.channels)
    x = np.concatenate([block.reshape(-1, reader.channels) for _, block in reader.blocks()]).astype(np.float32)
    on = positives(directions, directions.logits(x)).astype(np.float64)
    present = truth.present.astype(np.float64)
    both = present.T @ on
    union = present.sum(0)[:, None] + on.sum(0)[None] - both
    iou = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    concepts, matched = linear_sum_assignment(-iou)
    count = truth.signals.shape[1]
    match = np.full(count, -1)
    match[concepts] = matched
    has = match >= 0
    cos, filter_cos = np.zeros(count), np.zeros(count)
    cos[has] = cosines(directions.signals[:, match[has]], truth.signals[:, has])
    filter_cos[has] = cosines(directions.filters[:, match[has]], ideal_filters(x, truth.values)[:, has])
    estimated = directions.signal_values(x)[:, match[has]]
    wanted = truth.values[:, has] - truth.values[:, has].mean(0)
    best = np.zeros(count)
    best[has] = iou[np.flatnonzero(has), match[has]]
    return {
        "iou": [round(float(v), 4) for v in best],
        "cos": [round(float(v), 4) for v in cos],
        "filter_cos": [round(float(v), 4) for v in filter_cos],
        "rmse": round(float(np.sqrt(np.mean((estimated - wanted) ** 2))), 4),
        "matched": int((best > 0.5).sum()),
        "distinct_matches": round(distinct_matches(iou), 4),
        "match": match.tolist(),
    }
