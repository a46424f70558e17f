"""Signal values: read by each filter or by all jointly, and what a store's images have of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluate.explain import values as module
from evaluate.explain.values import RIDGE, readout, usual_values
from stores.directions import Directions
from stores.errors import NonFiniteError, UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore


def directions(filters: np.ndarray, signals: np.ndarray, mean: np.ndarray | None = None) -> Directions:
    filters, signals = (np.asarray(a, np.float32) for a in (filters, signals))
    mean = np.zeros(len(filters), np.float32) if mean is None else mean.astype(np.float32)
    return Directions(filters, signals, mean, None, "toy", "conv")


def test_paper_is_what_the_directions_themselves_say() -> None:
    g = np.random.default_rng(0)
    s = g.normal(size=(6, 4))
    d = directions(g.normal(size=(6, 4)) * 3, s / np.linalg.norm(s, axis=0), g.normal(size=6))
    x = g.normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_allclose((x - d.mean) @ readout(d, "paper"), d.signal_values(x), rtol=1e-4)


def test_filters_that_read_one_concept_each_give_its_value_either_way() -> None:
    s = np.array([[1, 0.6], [0, 0.8], [0, 0]])
    w = np.linalg.pinv(s).T * [2, 5]  # orthogonal to the other's signal vector, of any length
    d = directions(w, s)
    alpha = np.array([[1.5, -0.5], [0, 2]])
    x = alpha @ s.T
    np.testing.assert_allclose(x @ readout(d, "paper"), alpha, atol=1e-6)
    np.testing.assert_allclose(x @ readout(d, "joint"), alpha, atol=4 * RIDGE)


def test_joint_counts_once_what_a_direction_and_its_opposite_share() -> None:
    d = directions([[1, -1], [0, 0]], [[1, -1], [0, 0]])
    x = np.array([[3.0, 7.0]])
    assert (x @ readout(d, "paper")).tolist() == [[3, -3]]
    shares = x @ readout(d, "joint")
    np.testing.assert_allclose(shares, [[1.5, -1.5]], rtol=RIDGE)
    np.testing.assert_allclose(shares @ d.signals.T, [[3, 0]], rtol=RIDGE)


def test_joint_leaves_what_no_filter_reads() -> None:
    """A distractor that filters ignore does not become a concept, as it would by projecting on the signals."""
    s = np.array([[1, 0], [0, 1], [0, 0]])
    d = directions([[1, 0], [0, 1], [-0.5, 0]], s)  # the first filter is orthogonal to the distractor
    distractor = np.array([0.4, 0, 0.8])
    assert abs((distractor @ readout(d, "joint"))[0]) < RIDGE


def test_a_dead_direction_has_the_value_0() -> None:
    d = directions([[0, 1], [0, 1]], [[1, 0], [0, 1]])
    for values in ("paper", "joint"):
        assert np.isfinite(readout(d, values)).all()  # type: ignore[arg-type]
    assert (readout(d, "paper")[:, 0] == 0).all()


def usual_of(path: Path, x: np.ndarray, make_store: Callable[..., ActivationStore], **options: object):  # type: ignore[no-untyped-def]
    d = directions(np.eye(3), np.eye(3), np.array([1.0, 0, 0]))
    reader = LayerReader(make_store(path, x, grid=(1, x.shape[1]), **options))
    return usual_values(reader, d, readout(d, "paper")), d


def test_usual_values(
    make_store: Callable[..., ActivationStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(1).random((30, 4, 3)).astype(np.float32)
    x[..., 2] = 5
    valid = np.arange(30) != 7
    monkeypatch.setattr(module, "_AT_ONCE", 100)  # several blocks
    found, _ = usual_of(tmp_path / "s", x, make_store, valid=valid)
    pooled = x[valid].mean(1) - [1, 0, 0]
    np.testing.assert_allclose(found.spread[:2], pooled.std(0)[:2], rtol=1e-5)
    assert 0 < found.spread[2] < 1e-6
    np.testing.assert_allclose(found.low, np.quantile(pooled, 0.005, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.high, np.quantile(pooled, 0.995, axis=0), rtol=1e-4)
    assert found.nonnegative
    assert found.images == 29
    x[3, 2, 1] = -0.001
    assert not usual_of(tmp_path / "t", x, make_store)[0].nonnegative
    monkeypatch.setattr(module, "IMAGES", 10)
    assert usual_of(tmp_path / "u", x, make_store)[0].images == 10


def test_stores_that_cannot_tell(make_store: Callable[..., ActivationStore], tmp_path: Path) -> None:
    x = np.ones((4, 2, 3), np.float32)
    reader = LayerReader(make_store(tmp_path / "a", x, grid=(2, 2), positions=np.array([[0, 3]] * 4)))
    d = directions(np.eye(3), np.eye(3))
    with pytest.raises(UsageError, match="--positions all"):
        usual_values(reader, d, readout(d))
    x[2, 1, 0] = np.nan
    reader = LayerReader(make_store(tmp_path / "b", x, grid=(1, 2)))
    with pytest.raises(NonFiniteError, match="'2.png'"):
        usual_values(reader, d, readout(d))
