"""From counts to scores: labels on train, everything else on val (Network Dissection; UIBE; EDDP §5).

Detectors of one set that carry the same label are also taken together: positive where any of them is (Network Dissection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.average_precision import Overlap, agree, best_bin, from_bin
from evaluate.bootstrap import interval, set_intervals
from evaluate.counts import Counts
from evaluate.label_statistics import Second

INTERPRETABLE = 0.04  # IoU above which a detector counts as interpretable (Bau et al. 2017)
FEW_IMAGES = 5  # of val that show a label: fewer say little of how well it fits
NO_LABEL, FEW = "no label fits", "too few validation images"


@dataclass(frozen=True)
class Labelled:
    """Labels and scores of one direction set, I directions; ``label`` (I,) is a column of the counts, −1 for none."""

    label: np.ndarray
    iou_train: np.ndarray
    iou_val: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    average_precision: np.ndarray
    all_iou_train: np.ndarray
    all_iou_val: np.ndarray


def problem_of(label: str, iou_val: float, images_val: int) -> str:
    """What stands against a direction's label, in words for people; empty for nothing."""
    if label and images_val < FEW_IMAGES:
        return FEW
    return "" if label and iou_val > INTERPRETABLE else NO_LABEL


def choose_labels(counts: Counts) -> np.ndarray:
    """(J,) column of the label with the largest IoU on train; −1 where none overlaps at all."""
    iou = counts.iou(0)
    best = iou.argmax(1)
    return np.where(iou[np.arange(len(best)), best] > 0, best, -1)


def score(counts: Counts, columns: slice, label: np.ndarray, average_precision: np.ndarray) -> Labelled:
    """Scores of the detectors in ``columns``; ``label`` and ``average_precision`` are those of the complete bank (J,)."""
    label, ap = label[columns], average_precision[columns]
    train, val = counts.iou(0)[columns], counts.iou(1)[columns]
    rows, safe = np.arange(len(label)), np.maximum(label, 0)
    has = label >= 0
    both = counts.both[1][columns][rows, safe]
    detector = counts.detector[1][columns][rows, counts.category_of[safe]]
    truth = counts.label[1][safe]

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(has, np.divide(a, b, out=np.zeros_like(a), where=b > 0), 0.0)

    return Labelled(
        label=label,
        iou_train=np.where(has, train[rows, safe], 0.0),
        iou_val=np.where(has, val[rows, safe], 0.0),
        precision=ratio(both, detector),
        recall=ratio(both, truth),
        f1=ratio(2 * both, detector + truth),
        average_precision=np.where(has, ap, np.nan),
        all_iou_train=train,
        all_iou_val=val,
    )


def s1(iou_val: np.ndarray) -> float:
    """``S1 = Σ_i IoU_val(i, c*_i)``: the integral over thresholds of the number of detectors above them (UIBE)."""
    return float(iou_val.sum())


def s2(label: np.ndarray, iou_val: np.ndarray) -> float:
    """``S2 = Σ over distinct labels of the best IoU_val among their detectors``: the same integral for labels."""
    return float(sum(iou_val[label == c].max() for c in np.unique(label[label >= 0])))


def union_scores(counts: Counts, second: Second, columns: slice) -> tuple[np.ndarray, np.ndarray, Overlap]:
    """Of the set in ``columns``: its different labels (U,), how many detectors carry each (U,), and their unions' scores
    on val (U,)."""
    label_of = second.chosen.label_of
    label = label_of[columns]
    carried, detectors = np.unique(label[label >= 0], return_counts=True)
    both, found = np.zeros(len(carried)), np.zeros(len(carried))
    together = {(int(g[0]), int(label_of[g[0]])): k for k, g in enumerate(second.chosen.groups)}
    for u, column in enumerate(carried.tolist()):
        first = columns.start + int(np.flatnonzero(label == column)[0])
        if (k := together.get((first, column))) is not None:
            both[u], found[u] = second.union_both[k], second.union[k]
        else:  # a single detector
            both[u], found[u] = counts.both[1, first, column], counts.detector[1, first, counts.category_of[column]]
    return carried, detectors, agree(both, found, counts.label[1][carried])


def union_rows(name: str, counts: Counts, second: Second, columns: slice) -> list[dict[str, Any]]:
    """One row a label that the set carries."""
    carried, detectors, scores = union_scores(counts, second, columns)
    return [
        {
            "directions": name,
            "label": counts.labels[column].name,
            "category": counts.labels[column].category,
            "detectors": int(detectors[u]),
            "iou": round(float(scores.iou[u]), 6),
            "precision": round(float(scores.precision[u]), 6),
            "recall": round(float(scores.recall[u]), 6),
            "f1": round(float(scores.f1[u]), 6),
        }
        for u, column in enumerate(carried.tolist())
    ]


@dataclass(frozen=True)
class LabelScores:
    """``iou_low``, ``iou_high`` (I,): 95 % interval of the IoU on val; ``threshold`` (I,): the logit of the best F1 on
    train, NaN without a label there, and ``supervised`` (I,) its scores on val; ``intervals`` of the set's scores;
    ``unions`` (U,): scores on val of the U labels that the set carries."""

    iou_low: np.ndarray
    iou_high: np.ndarray
    threshold: np.ndarray
    supervised: Overlap
    intervals: dict[str, list[float]]
    unions: Overlap


def label_scores(counts: Counts, second: Second, columns: slice, *, limit: float) -> LabelScores:
    """Scores of the detectors in ``columns``; ``limit`` is the IoU above which one counts as interpretable."""
    label = second.chosen.label_of[columns]
    replicated = agree(second.both[:, columns], second.detector[:, columns], second.label[:, columns])
    low, high = interval(replicated.iou)
    positive, negative = second.positive[:, columns].astype(float), second.negative[:, columns].astype(float)
    first = best_bin(positive[0], negative[0])
    return LabelScores(
        iou_low=low,
        iou_high=high,
        threshold=second.chosen.edge(columns, first),
        supervised=from_bin(positive[1], negative[1], first),
        intervals=set_intervals(label, replicated, limit),
        unions=union_scores(counts, second, columns)[2],
    )


def summarise(counts: Counts, name: str, scores: Labelled, refined: LabelScores | None = None) -> dict[str, Any]:
    """The entry of ``summary.json`` for one direction set. Means are over interpretable detectors, 0 without any.

    ``coverage``: share of the layer's positions with at least one positive detector; ``redundancy``: mean number of
    positive detectors on covered positions [both our definitions]. With what the second pass gave also ``intervals``,
    ``supervised_thresholds`` and ``union``, whose means are over labels that all their detectors together interpret.
    """
    good = (scores.iou_val > INTERPRETABLE) & (scores.label >= 0)
    per_category: dict[str, dict[str, int]] = {}
    for category in counts.categories:
        labels = [int(c) for c in scores.label[good] if counts.labels[c].category == category]
        if labels:
            per_category[category] = {"distinct": len(set(labels)), "detectors": len(labels)}

    def mean(values: np.ndarray) -> float:
        kept = values[good & np.isfinite(values)]
        return round(float(kept.mean()), 4) if len(kept) else 0.0

    found = {
        "directions": len(scores.label),
        "s1": round(s1(scores.iou_val), 4),
        "s2": round(s2(scores.label, scores.iou_val), 4),
        "interpretable": int(good.sum()),
        "distinct": len(set(scores.label[good].tolist())),
        "per_category": per_category,
        "coverage": round(counts.covered[name] / max(counts.positions, 1), 4),
        "redundancy": round(counts.active[name] / max(counts.covered[name], 1), 4),
        "precision": mean(scores.precision),
        "recall": mean(scores.recall),
        "f1": mean(scores.f1),
        "average_precision": mean(scores.average_precision),
    }
    if refined is not None:
        found["intervals"] = refined.intervals
        found["supervised_thresholds"] = {
            **{key: mean(getattr(refined.supervised, key)) for key in ("iou", "precision", "recall", "f1")},
            "s1": round(s1(refined.supervised.iou), 4),
            "s2": round(s2(scores.label, refined.supervised.iou), 4),
        }
        found["union"] = _summarise_unions(refined.unions)
    return found


def _summarise_unions(unions: Overlap) -> dict[str, Any]:
    good = unions.iou > INTERPRETABLE
    means = {
        key: round(float(getattr(unions, key)[good].mean()), 4) if good.any() else 0.0
        for key in ("iou", "precision", "recall", "f1")
    }
    return {"labels": int(good.sum()), **means, "s2": round(float(unions.iou.sum()), 4)}
