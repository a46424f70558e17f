"""The threshold of the best F1 from histograms, against trying every one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.average_precision import agree, best_bin, from_bin


def test_agreement_by_hand() -> None:
    """20 of 25 found are true, of 40: 20 / 45, 20 / 25, 20 / 40, 40 / 65; nothing found, nothing true: 0."""
    found = agree(np.array([20.0, 0]), np.array([25.0, 0]), np.array([40.0, 0]))
    np.testing.assert_allclose(found.iou, [20 / 45, 0])
    np.testing.assert_allclose(found.precision, [0.8, 0])
    np.testing.assert_allclose(found.recall, [0.5, 0])
    np.testing.assert_allclose(found.f1, [40 / 65, 0])


def test_the_best_bin_by_hand() -> None:
    """From bin 2 on: 3 of 4 true ones, 1 false one: F1 6/8. From bin 1 on: 4 and 3: 8/11. From bin 3 on: 1 and 0: 2/5."""
    positive, negative = np.array([[0, 1, 2, 1.0], [0, 0, 0, 0]]), np.array([[5, 2, 1, 0.0], [1, 1, 1, 1]])
    assert best_bin(positive, negative).tolist() == [2, -1]
    found = from_bin(positive, negative, np.array([2, -1]))
    np.testing.assert_allclose(found.f1, [6 / 8, 0])
    np.testing.assert_allclose(found.iou, [3 / 5, 0])


def test_of_equals_the_highest() -> None:
    """2 of 4 with nothing false, and all 4 with as many false ones: F1 is 2/3 both times."""
    assert best_bin(np.array([[2, 2.0]]), np.array([[4, 0.0]])).tolist() == [1]
    assert best_bin(np.array([[1, 0, 0.0]]), np.array([[0, 0, 0.0]])).tolist() == [0]


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 12))
def test_the_best_bin_is_the_best_of_all(seed: int, n: int, bins: int) -> None:
    g = np.random.default_rng(seed)
    value, truth = g.integers(0, bins, n), g.random(n) < 0.4
    positive, negative = (np.bincount(value[here], minlength=bins)[None].astype(float) for here in (truth, ~truth))
    first = best_bin(positive, negative)
    if not truth.any():
        assert first[0] == -1
        return
    f1, iou = [], []
    for k in range(bins):
        on = value >= k
        f1.append(2 * (on & truth).sum() / (on.sum() + truth.sum()))
        iou.append((on & truth).sum() / (on | truth).sum())
    found = from_bin(positive, negative, first)
    assert found.f1[0] == pytest.approx(max(f1))
    assert found.iou[0] == pytest.approx(max(iou))  # best for one is best for the other
    assert first[0] == max(k for k in range(bins) if f1[k] >= max(f1) - 1e-12)
