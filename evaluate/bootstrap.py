"""Confidence intervals by resampling images: what would the scores be on another draw of the val split?

Each replicate counts every image as often as a Poisson(1) draw says (the Poisson bootstrap: as the usual one, but sums can
be streamed). The draws of an image depend only on the seed and its number, so no order, batch or worker changes them. Labels
stay those chosen on train.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaluate.average_precision import Overlap

REPLICATES = 200
LEVEL = 0.95


def poisson_weights(seed: int, image: int, replicates: int) -> np.ndarray:
    """(B,) how often each replicate counts an image."""
    return np.random.default_rng([seed, image]).poisson(1.0, replicates)


def half_of(seed: int, image: int) -> int:
    """0 or 1: which random half of the images one is in."""
    return int(np.random.default_rng([seed, image, 0x2A]).integers(2))


def interval(values: np.ndarray) -> np.ndarray:
    """(2, ...) the percentile interval of replicates (B, ...), which holds 95 % of them."""
    return np.asarray(np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))


def set_intervals(label: np.ndarray, replicated: Overlap, limit: float) -> dict[str, list[float]]:
    """Intervals [low, high] of a set's scores.

    Parameters
    ----------
    label : (I,) column of each detector's label, −1 for none.
    replicated : each replicate's scores (B, I).
    limit : IoU above which a detector counts as interpretable, in each replicate anew.
    """
    iou = np.where(label >= 0, replicated.iou, 0.0)
    good = iou > limit
    owners = [label == c for c in np.unique(label[label >= 0])]
    count = good.sum(1)

    def per_label(best: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.sum([best(mine) for mine in owners], axis=0) if owners else np.zeros(len(iou))

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * good).sum(1) / np.maximum(count, 1)

    values = {
        "s1": iou.sum(1),
        "s2": per_label(lambda mine: iou[:, mine].max(1)),
        "interpretable": count,
        "distinct": per_label(lambda mine: good[:, mine].max(1)),
        "precision": mean(replicated.precision),
        "recall": mean(replicated.recall),
        "f1": mean(replicated.f1),
    }
    return {name: [round(float(v), 4) for v in interval(replicates)] for name, replicates in values.items()}
