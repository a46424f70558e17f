"""Histograms of unknown range are those of numpy over the same edges, whatever the order; one pass finds what many would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.detector_bank import make_bank
from evaluate.report.logit_histograms import BINS, FINEST, SMALLEST, Histogram, Histograms, survey


def counted(parts: list[np.ndarray], bins: int = BINS) -> list[Histogram]:
    histograms = Histograms(parts[0].shape[1], bins)
    for part in parts:
        histograms.add(torch.from_numpy(part))
    return [histograms.histogram(j) for j in range(parts[0].shape[1])]


def sum_of(parts: list[np.ndarray], bins: int) -> Histogram:
    """The sum of the histograms of each part, and of nothing."""
    total = Histograms(1, bins)
    for part in parts:
        one = Histograms(1, bins)
        one.add(torch.from_numpy(part))
        total += one
    return (total + Histograms(1, bins)).histogram(0)


def naive(values: np.ndarray, width: float) -> tuple[float, tuple[int, ...]]:
    """First edge and counts of the bins [k w, (k + 1) w) from the first that holds a value to the last."""
    place = np.floor(values.astype(np.float64) / width).astype(np.int64)
    return place.min() * width, tuple(np.bincount(place - place.min()).tolist())


numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(st.lists(st.lists(numbers, min_size=1, max_size=12), min_size=1, max_size=5), st.integers(2, 9))
def test_counts_are_exact_whatever_the_range_becomes(parts: list[list[float]], bins: int) -> None:
    columns = [np.array(part, np.float32)[:, None] for part in parts]
    every = np.concatenate(columns)
    (found,) = counted(columns, bins)
    assert np.log2(found.width).is_integer()
    assert (found.low, found.counts) == naive(every[:, 0], found.width)
    assert len(found.counts) <= bins
    assert (found.least, found.most) == (every.min(), every.max())
    (together,) = counted([every[::-1].copy()], bins)
    assert together == found  # neither the order nor the parts matter
    assert sum_of(columns, bins) == found


@given(st.lists(numbers, min_size=2, max_size=20, unique=True))
def test_bins_are_as_narrow_as_they_can_be(values: list[float]) -> None:
    every = np.array(values, np.float32)[:, None]
    (found,) = counted([every])
    finer, size = found.width / 2, float(np.abs(every).max())
    place = np.floor(every.astype(np.float64) / finer)
    assert place.max() - place.min() >= BINS or finer < max(2 * size * 2.0**-FINEST, 2.0**SMALLEST)


def test_zero_is_an_edge_and_each_column_has_its_own_width() -> None:
    x = np.array([[-3.0, 0.001], [0.0, 0.002], [5.0, 0.0], [-0.1, 0.0015]], np.float32)
    a, b = counted([x])
    assert a.width == 0.25  # from −3 to 5 there are 65 bins of 0.125
    assert b.width == 2.0**-14
    for found, values in ((a, x[:, 0]), (b, x[:, 1])):
        edges = found.low + found.width * np.arange(len(found.counts) + 1)
        below = sum(c for c, edge in zip(found.counts, edges, strict=False) if edge < 0)
        assert below == (values < 0).sum()


@pytest.mark.parametrize("value", [0.0, 7.5, -1e-30])
def test_a_constant_fills_one_bin(value: float) -> None:
    (found,) = counted([np.full((6, 1), value, np.float32)] * 2)
    assert found.counts == (12,)
    assert found.low <= value < found.low + found.width


def test_nothing_counted_is_an_empty_bin() -> None:
    assert Histograms(1).histogram(0).counts == (0,)


@pytest.mark.parametrize("scheduler", ["here", "threads"])
@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_a_survey_finds_what_the_full_layer_shows(memory_reader, make_directions, chunk: int, scheduler: str) -> None:  # type: ignore[no-untyped-def]
    g = np.random.default_rng(3)
    x = g.integers(-3, 4, (17, 6, 4)).astype(np.float32)  # ties are common among whole numbers
    valid = g.random(17) < 0.8
    reader = memory_reader(x, (2, 3), chunk_images=chunk, valid=valid)
    directions = make_directions(g.integers(-2, 3, (4, 5)), [0.0, 1.0, 2.0, -1.0, 9.0])
    few = make_directions(g.integers(-2, 3, (4, 2)), [1.0, -1.0])
    both = survey(reader, make_bank({"few": few, "d": directions}, reader), 4, scheduler=scheduler)
    found = both["d"]
    assert both["few"].covered == (few.logits(x[valid]) > 0).any(2).sum()  # of each set individually
    rows = np.flatnonzero(valid)
    z = directions.logits(x[rows])
    assert found.positions == z[..., 0].size
    assert found.positives.tolist() == (z > 0).sum((0, 1)).tolist()
    assert found.covered == (z > 0).any(2).sum()
    assert found.coverage == found.covered / found.positions
    assert found.redundancy == pytest.approx((z > 0).sum() / found.covered)
    for j in range(5):
        peak = z[:, :, j].max(1)
        best = sorted(range(len(rows)), key=lambda i: (-peak[i], i))[:4]
        assert found.top.rows[:, j].tolist() == rows[best].tolist()
        assert found.top.values[:, j].tolist() == peak[best].tolist()
        fires = [i for i in range(len(rows)) if peak[i] > 0]
        weakest = [i for i in sorted(fires, key=lambda i: (peak[i], i))[:3] if i not in best]
        rest = [i for i in sorted(fires, key=lambda i: -peak[i]) if i not in (*best, *weakest)]
        shown = found.across.rows[:, j]
        assert [row for row in shown[3:] if row >= 0] == rows[weakest[::-1]].tolist()
        middle = np.searchsorted(rows, [row for row in shown[:3] if row >= 0])
        start = max(0, (len(rest) - 3) // 2)  # all images that fire are in the sample
        assert peak[middle].tolist() == peak[rest[start : start + 3]].tolist()
        assert set(middle) <= set(rest)
        known = shown >= 0
        assert found.across.values[known, j].tolist() == [peak[i] for i in np.searchsorted(rows, shown[known])]
        histogram = found.histograms[j]
        assert (histogram.low, histogram.counts) == naive(z[:, :, j].ravel(), histogram.width)


def test_fewer_images_than_are_asked_for(memory_reader, make_directions) -> None:  # type: ignore[no-untyped-def]
    reader = memory_reader(np.ones((2, 1, 3), np.float32), (1, 1))
    found = survey(reader, make_bank({"d": make_directions(np.eye(3), [0, 0, 0])}, reader), 9)["d"]
    assert found.top.rows.tolist() == [[0, 0, 0], [1, 1, 1]]
