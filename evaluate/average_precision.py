"""From histograms of logits: average precision, and the threshold that agrees best with a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def average_precision_from_bins(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Average precision (J,) from histograms (J, bins) of the positives' and the negatives' scores, ascending bins.

    Positions of one bin are taken in together, so the value is that of scores rounded to the bins; NaN without positives.
    """
    hits = positive[:, ::-1].cumsum(1)
    seen = hits + negative[:, ::-1].cumsum(1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    total = hits[:, -1]
    gained = np.diff(hits, axis=1, prepend=0)
    value = (precision * gained).sum(1)
    return np.divide(value, total, out=np.full(len(total), np.nan), where=total > 0)


@dataclass(frozen=True)
class Overlap:
    """How well sets of positions agree with sets of others, all (n,); 0 where nothing is there to agree with."""

    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def agree(both: np.ndarray, found: np.ndarray, truth: np.ndarray) -> Overlap:
    """From the numbers of positions in both, in what was found, and in what is true; all of one shape."""

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.divide(a, b, out=np.zeros(np.shape(a)), where=b > 0)

    return Overlap(
        ratio(both, found + truth - both), ratio(both, found), ratio(both, truth), ratio(2 * both, found + truth)
    )


def best_bin(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """(J,) the bin from which on to take positions in, for the best F1, which is also the best IoU; −1 without positives.

    Among equals the highest, which takes the fewest positions in. Arguments as in ``average_precision_from_bins``.
    """
    hits = positive[:, ::-1].cumsum(1)  # from the highest bin down: taken in so far
    seen = hits + negative[:, ::-1].cumsum(1)
    f1 = agree(hits, seen, np.broadcast_to(hits[:, -1:], hits.shape)).f1
    return np.where(hits[:, -1] > 0, positive.shape[1] - 1 - f1.argmax(1), -1)


def from_bin(positive: np.ndarray, negative: np.ndarray, first: np.ndarray) -> Overlap:
    """The overlap (J,) when the positions of bin ``first`` (J,) and of all higher ones are taken in; 0 for −1."""
    inside = (np.arange(positive.shape[1]) >= first[:, None]) & (first >= 0)[:, None]
    hits, wrong = (positive * inside).sum(1), (negative * inside).sum(1)
    return agree(hits, hits + wrong, positive.sum(1))
