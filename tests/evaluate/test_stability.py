"""Directions found again: permuted and turned copies are, random ones no more than by chance, and what reads the same is known to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.detector_bank import Bank
from evaluate.stability import STABILITY, firing_iou, stability_of, stability_rows
from stores.directions import Directions
from stores.errors import MismatchError
from stores.readers import LayerReader
from stores.similarity import cosines, deranged, logit_correlation, match
from stores.statistics import Statistics


def pair(filters: np.ndarray, signals: np.ndarray, *, method: str = "toy", layer: str = "conv") -> Directions:
    filters, signals = np.asarray(filters, np.float32), np.asarray(signals, np.float32)
    return Directions(filters, signals, np.zeros(len(filters), np.float32), None, method, layer)


def random_pair(c: int, i: int, seed: int, **named: str) -> Directions:
    g = np.random.default_rng(seed)
    return pair(g.normal(size=(c, i)), g.normal(size=(c, i)), **named)


def plain(c: int) -> Statistics:
    return Statistics(np.zeros(c), np.eye(c), 100)


def rows(
    sets: dict[str, Directions], statistics: Statistics | None = None, iou: np.ndarray | None = None
) -> list[dict]:
    ends = np.cumsum([d.count for d in sets.values()]).tolist()
    slices = {name: slice(end - d.count, end) for (name, d), end in zip(sets.items(), ends, strict=True)}
    overlap = np.eye(ends[-1]) if iou is None else iou
    return stability_rows(sets, statistics or plain(next(iter(sets.values())).channels), overlap, slices)


@given(st.integers(2, 20), st.integers(2, 8), st.integers(0, 2**16))
def test_permuted_turned_and_scaled_copies_are_found_again(c: int, i: int, seed: int) -> None:
    g = np.random.default_rng(seed)
    a = random_pair(c, i, seed)
    order, sign = g.permutation(i), g.choice([-1, 1], i)
    scale = g.uniform(0.1, 10, i)
    b = pair(a.filters[:, order] * sign * scale, a.signals[:, order] * sign / scale)
    same = np.abs(cosines(a.signals, b.signals))
    found = match(same, np.abs(cosines(a.signals, a.signals)), np.abs(cosines(b.signals, b.signals)))
    assert order[found.second].tolist() == found.first.tolist() == list(range(i))
    (row,) = rows({"a": a, "b": b})
    for measure in ("logit_correlation", "signal_cos"):
        assert row[measure] == pytest.approx(1, abs=1e-5)
        assert row[f"{measure}_kappa"] == pytest.approx(1, abs=1e-4)
        assert row[f"{measure}_share"] == 1.0
    assert row["mutual"] == 1.0
    assert row["note"] == ""


def test_random_directions_are_as_alike_as_chance_has_it() -> None:
    c, i = 512, 32
    (row,) = rows({"a": random_pair(c, i, 0), "b": random_pair(c, i, 1)})
    # the largest of 32 |N(0, 1/C)| is 2.35 / √C on average; one to one, not everyone gets it
    assert 0.75 * 2.35 / np.sqrt(c) < row["signal_cos"] < 1.02 * 2.35 / np.sqrt(c)
    for measure in ("logit_correlation", "signal_cos"):
        assert abs(row[f"{measure}_kappa"]) < 0.01
        assert row[f"{measure}_share"] == 0.0


def test_directions_that_are_all_alike_are_not_found_again_by_being_alike() -> None:
    """A mean |cos| of 0.9 says nothing where any two directions of a set have it."""
    g = np.random.default_rng(0)
    common = g.normal(size=(64, 1))
    sets = {name: pair(*(3 * common + g.normal(size=(64, 8)) for _ in range(2))) for name in "ab"}
    (row,) = rows(sets)
    assert row["signal_cos"] > 0.85
    assert abs(row["signal_cos_kappa"]) < 0.25
    assert row["nearest_first"] > 0.85


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
def test_no_other_matching_is_better(i: int, j: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((i, j))
    found = match(values, np.eye(i), np.eye(j))
    wide = values.T if i > j else values
    best = max(
        sum(wide[k, p] for k, p in enumerate(chosen)) for chosen in itertools.permutations(range(max(i, j)), min(i, j))
    )
    assert found.values.sum() == pytest.approx(best)
    assert len(found.first) == len(found.second) == min(i, j)


@given(st.integers(2, 5), st.integers(0, 2**16))
def test_chance_leaves_no_direction_to_itself(i: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((i, i))
    best = max(
        np.mean([values[k, p] for k, p in enumerate(chosen)])
        for chosen in itertools.permutations(range(i))
        if all(k != p for k, p in enumerate(chosen))
    )
    assert deranged(values) == pytest.approx(best)


def test_sets_of_different_size_say_so() -> None:
    (row,) = rows({"a": pair(np.eye(4)[:, :2], np.eye(4)[:, :2]), "b": pair(np.eye(4)[:, ::-1], np.eye(4)[:, ::-1])})
    assert (row["directions_first"], row["directions_second"], row["matched"]) == (2, 4, 2)
    assert row["note"] == "2 of 4 directions matched: the sets are of different size"
    assert row["signal_cos"] == 1.0


def test_one_direction_has_no_chance_to_compare_with() -> None:
    (row,) = rows({"a": random_pair(4, 1, 0), "b": random_pair(4, 1, 1)})
    assert row["signal_cos_chance"] is row["signal_cos_kappa"] is row["nearest_first"] is None


def test_logits_are_compared_over_the_data() -> None:
    """Filters that differ only where the data do not vary read the same."""
    statistics = Statistics(np.zeros(3), np.diag([1.0, 4.0, 0.0]), 100)
    filters = np.array([[1.0, 0], [0, 1], [0, 0]])
    other = np.array([[1.0, 0], [0, 1], [5, -7]])
    np.testing.assert_allclose(logit_correlation(filters, other, statistics), np.eye(2), atol=1e-9)
    g = np.random.default_rng(0)
    root = g.normal(size=(3, 3))
    x = g.normal(size=(200_000, 3)) @ root.T
    a, b = g.normal(size=(3, 2)), g.normal(size=(3, 4))
    exact = np.corrcoef((x @ a).T, (x @ b).T)[:2, 2:]
    np.testing.assert_allclose(logit_correlation(a, b, Statistics(np.zeros(3), root @ root.T, 100)), exact, atol=0.01)


def test_firing_is_counted_over_all_positions(make_store: Callable, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(11, 6, 4)).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 3), chunk_images=3))
    filters = torch.from_numpy(g.normal(size=(4, 5)).astype(np.float32))
    bank = Bank(filters, torch.tensor([0.0, 0.5, -0.5, 1.0, 99.0]), {"a": slice(0, 5)})
    fires = (x.reshape(-1, 4) @ filters.numpy() - bank.thresholds.numpy()) > 0
    wanted = [[(p & q).sum() / max((p | q).sum(), 1) for q in fires.T] for p in fires.T]
    np.testing.assert_allclose(firing_iou(reader, bank), wanted, atol=1e-12)


def test_only_files_of_one_method_are_compared() -> None:
    sets = {
        n: random_pair(6, 3, k, method=m) for k, (n, m) in enumerate((("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")))
    }
    found = rows(sets)
    assert [(row["first"], row["second"]) for row in found] == [("a", "c"), ("a", "d"), ("c", "d")]
    assert tuple(found[0]) == STABILITY
    values = stability_of(found)
    assert set(values) == {"a", "c", "d"}
    wanted = np.mean([found[0]["logit_correlation"], found[1]["logit_correlation"]])
    assert values["a"]["stability"] == pytest.approx(wanted, abs=1e-4)


def test_other_layers_are_refused() -> None:
    with pytest.raises(MismatchError):
        rows({"a": random_pair(4, 2, 0), "b": random_pair(4, 2, 1, layer="other")})
    with pytest.raises(MismatchError, match="5 channels"):
        rows({"a": random_pair(4, 2, 0), "b": random_pair(4, 2, 1)}, plain(5))
