"""Directions against a synthetic store's truth: which concept each one found, and how well both directions fit it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from stores.directions import Directions
from stores.readers import LayerReader
from stores.truth import Truth


def positives(directions: Directions, z: np.ndarray) -> np.ndarray:
    """(n, I) bool: ``z > 0``, or the top quantile of each unit where there are no thresholds."""
    if directions.thresholds is not None:
        return z > 0
    keep = max(1, round(directions.quantile * len(z)))
    threshold = -np.sort(-z, axis=0)[min(keep, len(z) - 1)]
    return z > threshold


def against_truth(directions: Directions, reader: LayerReader, truth: Truth) -> dict[str, Any]:
    """Match detectors with concepts (Hungarian, by IoU) and compare.

    Returns ``iou`` and ``cos`` (signal vector with the true one) per true concept in order, ``matched``: concepts with
    a detector of IoU > 0.5, ``rmse``: root mean square difference of signal values ``α̂ − (α − E[α])`` over the matched
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
    signals = directions.signals[:, match[has]].astype(np.float64)
    cos = np.zeros(count)
    cos[has] = (signals * truth.signals[:, has]).sum(0) / np.maximum(np.linalg.norm(signals, axis=0), 1e-12)
    estimated = directions.signal_values(x)[:, match[has]]
    wanted = truth.values[:, has] - truth.values[:, has].mean(0)
    best = np.zeros(count)
    best[has] = iou[np.flatnonzero(has), match[has]]
    return {
        "iou": [round(float(v), 4) for v in best],
        "cos": [round(float(v), 4) for v in cos],
        "rmse": round(float(np.sqrt(np.mean((estimated - wanted) ** 2))), 4),
        "matched": int((best > 0.5).sum()),
        "match": match.tolist(),
    }
