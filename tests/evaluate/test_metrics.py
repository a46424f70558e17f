"""Scores from counts alone: labels, S1 and S2 against their integrals, the summary, fractions checked by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.dissect import Counts
from evaluate.metrics import choose_labels, s1, s2, score, summarise
from extract.segmentation.base import ConceptLabel


def toy_counts() -> Counts:
    """4 detectors, labels sky and sea (object) and beach (scene); 100 points a split in each category, but 50 of scenes on val.

    Detector 0 finds the sky. Detector 1 overlaps sky and sea equally on train. Detector 2 is dead. Detector 3 finds the
    beach, which does not occur on val.
    """
    both = np.array([
        [[30, 0, 10], [10, 10, 0], [0, 0, 0], [5, 0, 20]],
        [[20, 4, 0], [6, 8, 0], [0, 0, 0], [1, 1, 0]],
    ], float)  # fmt: skip
    return Counts(
        labels=[ConceptLabel(1, "sky", "object"), ConceptLabel(2, "sea", "object"), ConceptLabel(9, "beach", "scene")],
        categories=["object", "scene"],
        category_of=np.array([0, 0, 1]),
        both=both,
        detector=np.array([
            [[40, 40], [20, 20], [0, 0], [30, 30]],
            [[25, 10], [16, 8], [0, 0], [4, 2]],
        ], float),
        label=np.array([[35, 20, 50], [40, 8, 0]], float),
        points=np.array([[100, 100], [100, 50]], float),
        images=np.array([2, 2]),
        resolution="feature",
        raster=(5, 10),
        covered={"a": 60, "b": 0},
        active={"a": 90, "b": 0},
        positions=100,
        positive=np.array([65, 36, 0, 34]),
    )  # fmt: skip


def test_iou_by_hand() -> None:
    counts = toy_counts()
    np.testing.assert_allclose(counts.iou(0)[0], [30 / 45, 0, 10 / 80])
    np.testing.assert_allclose(counts.iou(0)[1], [10 / 45, 10 / 30, 0])
    np.testing.assert_array_equal(counts.iou(0)[2], [0, 0, 0])
    np.testing.assert_allclose(counts.iou(1)[0], [20 / 45, 4 / 29, 0])


def test_nothing_over_nothing_is_zero() -> None:
    counts = toy_counts()
    assert counts.iou(1)[2, 2] == 0  # neither the detector nor the label occurs on val


def test_labels_are_chosen_on_train_ties_go_to_the_first_and_dead_detectors_get_none() -> None:
    counts = toy_counts()
    assert choose_labels(counts).tolist() == [0, 1, -1, 2]
    counts.label[0, 1] = 35
    assert counts.iou(0)[1, 0] == counts.iou(0)[1, 1]
    assert choose_labels(counts)[1] == 0


def test_scores_on_val_by_hand() -> None:
    counts = toy_counts()
    ap = np.array([0.9, 0.5, 0.3, np.nan])
    found = score(counts, slice(0, 4), choose_labels(counts), ap)
    np.testing.assert_allclose(found.iou_train, [30 / 45, 10 / 30, 0, 20 / 60])
    np.testing.assert_allclose(found.iou_val, [20 / 45, 8 / 16, 0, 0])
    np.testing.assert_allclose(found.precision, [20 / 25, 8 / 16, 0, 0])
    np.testing.assert_allclose(found.recall, [20 / 40, 1, 0, 0])
    np.testing.assert_allclose(found.f1, [40 / 65, 16 / 24, 0, 0])
    np.testing.assert_array_equal(found.average_precision, [0.9, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(found.all_iou_val, counts.iou(1))


def test_a_slice_of_the_bank_gives_the_same_scores() -> None:
    counts = toy_counts()
    label, ap = choose_labels(counts), np.array([0.9, 0.5, 0.3, np.nan])
    whole, part = score(counts, slice(0, 4), label, ap), score(counts, slice(1, 3), label, ap)
    for name in ("label", "iou_train", "iou_val", "precision", "recall", "f1", "average_precision", "all_iou_train"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[1:3])


def test_summary_by_hand() -> None:
    counts = toy_counts()
    found = summarise(counts, "a", score(counts, slice(0, 4), choose_labels(counts), np.array([0.9, 0.5, 0.3, np.nan])))
    assert found == {
        "directions": 4,
        "s1": round(20 / 45 + 0.5, 4),
        "s2": round(20 / 45 + 0.5, 4),
        "interpretable": 2,
        "distinct": 2,
        "per_category": {"object": {"distinct": 2, "detectors": 2}},
        "coverage": 0.6,
        "redundancy": 1.5,
        "precision": round((0.8 + 0.5) / 2, 4),
        "recall": 0.75,
        "f1": round((40 / 65 + 2 / 3) / 2, 4),
        "average_precision": 0.7,
    }


def test_a_set_without_any_interpretable_detector_has_zeros() -> None:
    counts = toy_counts()
    found = summarise(counts, "b", score(counts, slice(2, 4), choose_labels(counts), np.full(4, np.nan)))
    assert found["per_category"] == {}
    zeros = {k: v for k, v in found.items() if k not in ("directions", "per_category")}
    assert set(zeros.values()) == {0}


def test_interpretable_means_above_the_limit() -> None:
    counts = toy_counts()
    counts.both[1, 0, 0], counts.label[1, 0], counts.detector[1, 0, 0] = 4, 52, 52  # 4 / 100: not above 0.04
    found = score(counts, slice(0, 1), choose_labels(counts), np.zeros(4))
    assert found.iou_val[0] == 0.04
    assert summarise(counts, "a", found)["interpretable"] == 0
    counts.both[1, 0, 0] = 5
    assert summarise(counts, "a", score(counts, slice(0, 1), choose_labels(counts), np.zeros(4)))["interpretable"] == 1


def integral(iou: np.ndarray, count: Callable[[np.ndarray], int]) -> float:
    """∫₀¹ count(detectors with IoU above t) dt: a step function, so the sum over its steps is exact."""
    steps = np.unique(np.concatenate([[0.0, 1.0], iou]))
    return sum((b - a) * count(iou > (a + b) / 2) for a, b in itertools.pairwise(steps))


@given(st.lists(st.tuples(st.integers(-1, 4), st.floats(0, 1)), min_size=1, max_size=30))
def test_s1_and_s2_are_the_integrals_over_thresholds(detectors: list[tuple[int, float]]) -> None:
    label = np.array([c for c, _ in detectors])
    iou = np.array([v if c >= 0 else 0.0 for c, v in detectors])
    assert s1(iou) == pytest.approx(integral(iou, lambda above: int(above.sum())), abs=1e-9)
    assert s2(label, iou) == pytest.approx(integral(iou, lambda above: len(set(label[above].tolist()))), abs=1e-9)
    assert s2(label, iou) <= s1(iou) + 1e-9


def test_s2_counts_a_label_once() -> None:
    label, iou = np.array([3, 3, 1, -1]), np.array([0.25, 0.5, 0.125, 0.0])
    assert s1(iou) == 0.875
    assert s2(label, iou) == 0.625
    assert s2(np.array([-1]), np.array([0.0])) == 0
