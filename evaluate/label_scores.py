"""Scores of one direction set from the second pass: intervals, supervised thresholds, unions of detectors of one label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluate.average_precision import Agreement, agree, best_bin, from_bin
from evaluate.bootstrap import interval, set_intervals
from evaluate.counts import Counts
from evaluate.label_statistics import Second
from evaluate.label_unions import union_scores


@dataclass(frozen=True)
class Refined:
    """``iou_low``, ``iou_high`` (I,): 95 % interval of the IoU on val; ``threshold`` (I,): the logit of the best F1 on
    train, NaN without a label there, and ``supervised`` (I,) its scores on val; ``intervals`` of the set's scores;
    ``unions`` (U,): scores on val of the U labels that the set carries."""

    iou_low: np.ndarray
    iou_high: np.ndarray
    threshold: np.ndarray
    supervised: Agreement
    intervals: dict[str, list[float]]
    unions: Agreement


def refine(counts: Counts, second: Second, columns: slice, *, limit: float) -> Refined:
    """Scores of the detectors in ``columns``; ``limit`` is the IoU above which one counts as interpretable."""
    label = second.chosen.label_of[columns]
    replicated = agree(second.both[:, columns], second.detector[:, columns], second.label[:, columns])
    low, high = interval(replicated.iou)
    positive, negative = second.positive[:, columns].astype(float), second.negative[:, columns].astype(float)
    first = best_bin(positive[0], negative[0])
    return Refined(
        iou_low=low,
        iou_high=high,
        threshold=second.chosen.edge(columns, first),
        supervised=from_bin(positive[1], negative[1], first),
        intervals=set_intervals(label, replicated, limit),
        unions=union_scores(counts, second, columns)[2],
    )
