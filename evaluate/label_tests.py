"""Do scores notice wrong labels? The Missing Labels and Extra Labels tests of NeuronEval (Oikarinen et al., ICML 2025).

A score that is as good when half of a label's positives are missing, or when as many false ones are added, does not tell a label that fits
from one that is too wide or too narrow. Both tests are run on val, twice, once for each random half of its images:

* missing: the label is there in the images of one half only;
* extra: the label's positives are doubled by false ones, drawn uniformly from the positions of one half of the images that do not carry it
  (their expected counts [ours]). Left out where these positions are fewer than the label's.

A score falls when it loses more than 0.001. F1, IoU and average precision should fall in both tests. Recall does not notice missing labels, nor
precision extra ones; the area under the ROC curve hardly notices missing labels of a rare concept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.average_precision import agree, average_precision_from_bins
from evaluate.label_statistics import Second

METRICS = ("iou", "f1", "average_precision", "precision", "recall", "auroc")
TESTS = ("missing", "extra")
LEAST = 1e-3  # that a score loses when it falls
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class LabelTest:
    """``before``, ``after`` (2, I): a score with the label as it is, and after the test on each half of the images; NaN where it was not run."""

    test: str
    metric: str
    before: np.ndarray
    after: np.ndarray

    def row(self) -> dict[str, Any]:
        """How many directions were tested, in which share of them (the mean of both halves) the score falls, and the mean change."""
        run = np.isfinite(self.before) & np.isfinite(self.after)
        tested = int(run.all(0).sum())
        fall = (self.before - self.after > LEAST).mean(0)[run.all(0)]
        low, high = wilson(float(fall.mean()), tested) if tested else (None, None)
        change = (self.after - self.before)[:, run.all(0)]
        values = {
            "holds": fall.mean() if tested else None,
            "holds_low": low,
            "holds_high": high,
            "change": change.mean() if tested else None,
        }
        rounded = {key: None if value is None else round(float(value), 6) for key, value in values.items()}
        return {"test": self.test, "metric": self.metric, "tested": tested, **rounded}


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` (Wilson 1927)."""
    centre, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    half = Z * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def label_tests(second: Second, columns: slice) -> list[LabelTest]:
    """Both tests of all scores, of the directions in ``columns`` whose label occurs in both halves of val."""
    half = second.half[:, :, columns]
    both, detector, label = half.sum(0)
    positive, negative = second.positive[1, columns].astype(float), second.negative[1, columns].astype(float)
    there = np.asarray((half[:, 2] > 0).all(0))
    before = _scores(both, detector, label, positive, negative, there)
    found: dict[str, list[dict[str, np.ndarray]]] = {test: [] for test in TESTS}
    second_half = second.positive_half[columns].astype(float), second.negative_half[columns].astype(float)
    for h, (own_both, own_detector, own_label) in enumerate(half):
        on, off = second_half if h else (positive - second_half[0], negative - second_half[1])
        found["missing"].append(_scores(own_both, detector, own_label, on, negative + positive - on, there))
        free = off.sum(1)
        share = np.divide(label, free, out=np.full_like(free, np.inf), where=free > 0)
        able = there & (share <= 1)
        share = np.where(able, share, 0)
        false = share[:, None] * off
        false_both = share * (own_detector - own_both)
        found["extra"].append(_scores(both + false_both, detector, 2 * label, positive + false, negative - false, able))
    return [
        LabelTest(test, metric, np.stack([before[metric]] * 2), np.stack([one[metric] for one in found[test]]))
        for test in TESTS
        for metric in METRICS
    ]


def _scores(
    both: np.ndarray,
    detector: np.ndarray,
    label: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    there: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each of ``METRICS`` (I,) from counts and histograms; NaN where ``there`` is False."""
    overlap = agree(both, detector, label)
    found = {
        **{metric: getattr(overlap, metric) for metric in ("iou", "f1", "precision", "recall")},
        "average_precision": average_precision_from_bins(positive, negative),
        "auroc": auroc_from_bins(positive, negative),
    }
    return {metric: np.where(there, found[metric], np.nan) for metric in METRICS}


def auroc_from_bins(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (J,) from histograms (J, bins) of ascending scores, a tie counted half; NaN without either kind."""
    below = negative.cumsum(1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.divide((positive * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def label_test_rows(name: str, second: Second, columns: slice) -> list[dict[str, Any]]:
    """One row a test and score of the set in ``columns``."""
    return [{"directions": name, **one.row()} for one in label_tests(second, columns)]
