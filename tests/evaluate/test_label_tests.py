"""Labels made wrong: one label of six images against a literal program, and which scores notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from slow_dissection import LABELS, WHOLE, Broden

from evaluate.bootstrap import half_of
from evaluate.detector_bank import make_bank
from evaluate.dissect import Dissector, Second
from evaluate.label_tests import METRICS, auroc_from_bins, label_test_rows, label_tests
from extract.labels import Alignment
from stores.directions import Directions
from stores.readers import LayerReader

Made = Callable[[np.ndarray, np.ndarray], Second]


@pytest.fixture
def second(
    tmp_path: Path,
    make_broden: Broden,
    memory_reader: Callable[..., LayerReader],
    make_directions: Callable[..., Directions],
) -> Made:
    """``second(sky (N, P), logits (N, P, J))`` of images of val, behind one of train; all detectors carry the label sky."""

    def make(sky: np.ndarray, logits: np.ndarray) -> Second:
        n, p, j = logits.shape
        maps = np.concatenate([np.ones((1, p), int), sky.astype(int)])
        rows = [
            {
                "image": f"{i}.png",
                "split": "val" if i else "train",
                "mask": (1, p),
                "cells": {"object": [maps[i : i + 1]]},
            }
            for i in range(n + 1)
        ]
        x = np.concatenate([logits[:1], logits]).astype(np.float32)
        reader, sets = memory_reader(x, (1, p)), {"a": make_directions(np.eye(j), [0.0] * j)}
        alignment = Alignment(
            make_broden(tmp_path / "b", LABELS, rows), {i: i for i in range(n + 1)}, lambda image: WHOLE
        )
        return Dissector(reader, make_bank(sets, reader), alignment, "feature").second(np.zeros(j, int), replicates=1)

    return make


def literal(z: np.ndarray, sky: np.ndarray, false: np.ndarray) -> list[float]:
    """All scores, position by position; ``false``: how much of a position without the label is given it."""
    truth = sky + false
    both, on = (truth * (z > 0)).sum(), float((z > 0).sum())
    there = np.concatenate([np.ones(z.size), np.zeros(z.size)])
    twice, weight = np.concatenate([z.ravel()] * 2), np.concatenate([truth.ravel(), 1 - truth.ravel()])
    values = {
        "iou": both / (on + truth.sum() - both), "f1": 2 * both / (on + truth.sum()), "precision": both / on,
        "recall": both / truth.sum(), "average_precision": average_precision_score(there, twice, sample_weight=weight),
        "auroc": roc_auc_score(there, twice, sample_weight=weight),
    }  # fmt: skip
    return [float(values[metric]) for metric in METRICS]


def test_it_is_the_literal_program(second: Made) -> None:
    g = np.random.default_rng(0)
    sky = g.random((6, 8)) < 0.3
    logits = g.integers(-3, 4, (6, 8, 4)) + 2 * sky[..., None]
    sums = second(sky, logits)
    found = {(one.test, one.metric): one for one in label_tests(sums, slice(0, 4))}
    half = np.array([half_of(0, 1 + i) for i in range(6)])
    assert set(half) == {0, 1}
    for j in range(4):
        z = logits[..., j].astype(float)
        for h in (0, 1):
            mine = (half == h)[:, None]
            free = ~sky & mine
            assert sky.sum() <= free.sum()
            expected = {
                "missing": literal(z, (sky & mine).astype(float), np.zeros(sky.shape)),
                "extra": literal(z, sky.astype(float), free * (sky.sum() / free.sum())),
            }
            for test, values in expected.items():
                for metric, value in zip(METRICS, values, strict=True):
                    assert found[test, metric].after[h, j] == pytest.approx(value, abs=1e-9), (test, metric)
        for metric, value in zip(METRICS, literal(z, sky.astype(float), np.zeros(sky.shape)), strict=True):
            assert found["missing", metric].before[:, j] == pytest.approx([value] * 2, abs=1e-9)


def test_which_scores_notice(second: Made) -> None:
    """Detectors of a rare label notice both by F1, IoU and AP; detectors by chance do not: any position is as good as the label's."""
    g = np.random.default_rng(1)
    sky = g.random((60, 50)) < 0.02
    sums = second(
        sky, np.concatenate([g.normal(size=(60, 50, 10)) + 6 * sky[..., None] - 3, g.normal(size=(60, 50, 40)) - 1], 2)
    )
    good = {(row["test"], row["metric"]): row for row in label_test_rows("a", sums, slice(0, 10))}
    for test in ("missing", "extra"):
        assert [good[test, metric]["holds"] for metric in ("iou", "f1", "average_precision")] == [1, 1, 1]
    assert good["extra", "precision"]["holds"] == 0
    assert (
        good["missing", "precision"]["holds"]
        == good["extra", "recall"]["holds"]
        == good["extra", "auroc"]["holds"]
        == 1
    )
    assert good["missing", "recall"]["holds"] <= 0.6
    assert abs(good["missing", "recall"]["change"]) < 0.02
    assert -0.02 < good["missing", "auroc"]["change"] < 0
    assert good["missing", "iou"]["holds_low"] == pytest.approx(
        1 / (1 + 1.959964**2 / 10), abs=1e-6
    )  # Wilson, 10 of 10
    chance = {(row["test"], row["metric"]): row for row in label_test_rows("a", sums, slice(10, 50))}
    for metric in ("iou", "f1", "average_precision"):
        assert chance["extra", metric]["holds"] <= 0.05
    assert chance["extra", "iou"]["tested"] == 40


def test_labels_that_cannot_be_tested_are_left_out(second: Made) -> None:
    sky = np.ones((6, 4), bool)
    sky[0, 0] = False
    rows = {
        (row["test"], row["metric"]): row for row in label_test_rows("a", second(sky, np.ones((6, 4, 2))), slice(0, 2))
    }
    assert rows["missing", "iou"]["tested"] == 2
    assert (rows["extra", "iou"]["tested"], rows["extra", "iou"]["holds"]) == (0, None)  # no room for false ones


def test_the_area_under_the_curve_by_hand() -> None:
    """One positive above one of two negatives and tied with the other: (1 + ½) / 2."""
    assert auroc_from_bins(np.array([[0.0, 1, 0]]), np.array([[1.0, 1, 0]])).tolist() == [0.75]
