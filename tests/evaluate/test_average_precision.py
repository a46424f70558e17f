"""Average precision from binned logits, against scikit-learn and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from slow_dissection import LABELS, WHOLE, Broden, many, naive_has

from evaluate.detector_bank import make_bank
from evaluate.dissect import (
    BINS,
    Dissector,
    average_precision_from_bins,
)
from extract.labels import Alignment
from stores.directions import Directions
from stores.readers import LayerReader

Make = Callable[..., Directions]
Reader = Callable[..., LayerReader]


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 12))
def test_average_precision_from_bins_is_exact_with_ties(seed: int, n: int, bins: int) -> None:
    g = np.random.default_rng(seed)
    value, truth = g.integers(0, bins, n), g.random(n) < 0.4
    positive, negative = (np.bincount(value[here], minlength=bins)[None].astype(float) for here in (truth, ~truth))
    found = average_precision_from_bins(positive, negative)
    if truth.any():
        assert found[0] == pytest.approx(average_precision_score(truth, value), abs=1e-12)
    else:
        assert np.isnan(found[0])


def test_average_precision_of_several_units_at_once() -> None:
    positive = np.array([[0, 0, 3.0], [2, 0, 0], [0, 0, 0], [1, 0, 1]])
    negative = np.array([[5, 0, 0.0], [0, 0, 2], [1, 1, 1], [0, 2, 0]])
    found = average_precision_from_bins(positive, negative)
    np.testing.assert_allclose(found[[0, 1, 3]], [1.0, 0.5, (1 + 2 / 4) / 2])
    assert np.isnan(found[2])


def test_well_separated_logits_lose_nothing_in_bins(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, _ = many(tmp_path, make_broden, n=8, mask=(4, 4))
    g = np.random.default_rng(8)
    x = (
        g.permutation(BINS // 2)[: 8 * 16].reshape(8, 16, 1).astype(np.float32)
    )  # all different, each in a bin of its own
    reader = memory_reader(x, (4, 4))
    dissector = Dissector(
        reader,
        make_bank({"a": make_directions([[1, -3]], [0.0, 0.0])}, reader),
        Alignment(source, {i: i for i in range(8)}, lambda image: WHOLE),
    )
    found = dissector.average_precision(np.array([0, 0]))
    truth, value = [], []
    for i in range(8):
        masks = source.masks(i)
        if source.split(i) == "val" and "object" in masks:
            truth.append(naive_has(masks, 1, (4, 4), WHOLE).reshape(-1))
            value.append(x[i, :, 0])
    flat, scores = np.concatenate(truth), np.concatenate(value)
    assert found.tolist() == pytest.approx(
        [average_precision_score(flat, scores), average_precision_score(flat, -scores)], abs=1e-12
    )


def test_a_detector_that_never_changes_has_the_labels_share(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    rows = [
        {"image": f"{i}.png", "split": s, "mask": (1, 4), "cells": {"object": [np.array([[1, 0, 0, 0]])]}}
        for i, s in enumerate(("train", "val"))
    ]
    source = make_broden(tmp_path / "b", LABELS, rows)
    reader = memory_reader(np.ones((2, 4, 1), np.float32), (1, 4))
    bank = make_bank({"a": make_directions([[0]], [0.0])}, reader)
    dissector = Dissector(reader, bank, Alignment(source, {0: 0, 1: 1}, lambda image: WHOLE))
    assert dissector.average_precision(np.array([0])).tolist() == [0.25]
