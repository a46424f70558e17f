"""Intervals: none where nothing varies, and as wide and as reliable as they must be where the variance is known."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.average_precision import Overlap, agree
from evaluate.bootstrap import interval, poisson_weights, set_intervals


def weights(seed: int, images: int, replicates: int = 200) -> np.ndarray:
    return np.stack([poisson_weights(seed, i, replicates) for i in range(images)], 1)  # (B, n)


def test_draws_hang_on_the_seed_and_the_image_only() -> None:
    w = weights(3, 40)
    np.testing.assert_array_equal(w[:, 17], poisson_weights(3, 17, 200))
    assert not np.array_equal(w[:, 0], w[:, 1])
    assert not np.array_equal(w[:, 0], poisson_weights(4, 0, 200))
    assert w.mean() == pytest.approx(1, abs=0.05)
    assert w.var() == pytest.approx(1, abs=0.1)


def test_images_that_are_all_alike_leave_no_doubt() -> None:
    """Each of 30 images: 2 positions in both, 3 of the detector, 4 of the label. IoU 2 / 5 whatever is drawn."""
    w = weights(0, 30)
    scores = agree(*(w.sum(1)[:, None] * float(n) for n in (2, 3, 4)))
    np.testing.assert_allclose(interval(scores.iou), [[0.4], [0.4]])
    found = set_intervals(np.array([7]), scores, 0.04)
    assert found == {
        "s1": [0.4, 0.4], "s2": [0.4, 0.4], "interpretable": [1, 1], "distinct": [1, 1],
        "precision": [0.6667, 0.6667], "recall": [0.5, 0.5], "f1": [0.5714, 0.5714],
    }  # fmt: skip


def test_intervals_are_as_wide_as_the_binomial_says_and_cover() -> None:
    """One positive an image, on the label with probability 0.3: precision has the variance 0.3 · 0.7 / n."""
    g, n, p = np.random.default_rng(0), 200, 0.3
    w = weights(1, n, 400).astype(float)
    covered, width = 0, []
    for _ in range(150):
        hit = (g.random(n) < p).astype(float)
        low, high = interval(agree(w @ hit, w.sum(1), w @ np.ones(n)).precision)
        covered += int(low <= p <= high)
        width.append(high - low)
    assert np.mean(width) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / n), rel=0.08)
    assert covered >= 0.9 * 150


def test_a_set_of_several_detectors_by_hand() -> None:
    """Three replicates of four detectors: labels 5, 5, 6 and none."""
    iou = np.array([[0.1, 0.3, 0.5, 0.9], [0.2, 0.1, 0.01, 0.9], [0.0, 0.0, 0.0, 0.9]])
    scores = Overlap(iou, iou, iou * 2, iou)
    found = set_intervals(np.array([5, 5, 6, -1]), scores, 0.04)

    def of(*values: float) -> list[float]:
        return [round(float(v), 4) for v in np.quantile(values, [0.025, 0.975])]

    assert found["s1"] == of(0.9, 0.31, 0)
    assert found["s2"] == of(0.3 + 0.5, 0.2 + 0.01, 0)
    assert found["interpretable"] == of(3, 2, 0)
    assert found["distinct"] == of(2, 1, 0)
    assert found["precision"] == of(0.3, 0.15, 0)
    assert found["recall"] == of(0.6, 0.3, 0)
