"""Factorisation: known parts, linear filters that read the codes, refusals, seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fit.baselines.nmf import NMF, NMFConfig
from fit.config import with_settings
from stores.errors import FitError
from stores.readers import LayerReader

N, P, C, PARTS = 300, 10, 12, 4
Made = Callable[..., Path]


def sums_of_parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (N, P, C), sparse codes (N·P, 4) and parts (4, C)."""
    g = np.random.default_rng(0)
    parts = g.random((PARTS, C)) * (g.random((PARTS, C)) < 0.5) + 0.01
    codes = g.random((N * P, PARTS)) * (g.random((N * P, PARTS)) < 0.5)
    return (codes @ parts).astype(np.float32).reshape(N, P, C), codes, parts


def fitted(reader: LayerReader, directions: int = PARTS, **settings: str) -> NMF:
    return NMF(with_settings(NMFConfig(n_directions=directions), {"iterations": "400", **settings})).fit(reader)


def test_it_finds_the_parts_and_its_filters_read_the_codes(tiny_store: Made) -> None:
    x, codes, parts = sums_of_parts()
    found = fitted(LayerReader(tiny_store({"a": x}))).directions_
    cosines = found.signals.T @ (parts / np.linalg.norm(parts, axis=1, keepdims=True)).T
    assert sorted(cosines.argmax(1)) == list(range(PARTS))
    assert cosines.max(1).min() > 0.99
    np.testing.assert_allclose(found.filters.T @ found.signals, np.eye(PARTS), atol=1e-4)
    read = found.logits(x.reshape(-1, C))[:, cosines.argmax(0)]
    assert min(np.corrcoef(read[:, i], codes[:, i])[0, 1] for i in range(PARTS)) > 0.95
    assert found.thresholds is None
    assert (found.signals >= 0).all()
    assert found.info["reconstruction"] > 0.99


def test_negative_activations_are_refused_or_clipped(tiny_store: Made) -> None:
    x, _, _ = sums_of_parts()
    x[7, 3, :6] = -0.25
    reader = LayerReader(tiny_store({"relu.before": x}))
    with pytest.raises(FitError, match=r"'relu\.before' .*0\.0167 % .*down to -0\.25.*--set negative=clip"):
        fitted(reader)
    clipped = fitted(reader, iterations="2", negative="clip")
    assert clipped.directions_.info["lowest"] == -0.25
    assert clipped.directions_.info["negative_share"] == pytest.approx(6 / x.size)
    zeros = LayerReader(tiny_store({"relu.before": x.clip(0)}, name="zeros.zarr"))
    assert (fitted(zeros, iterations="2").directions_.signals == clipped.directions_.signals).all()
    with pytest.raises(FitError, match="no positive activation"):
        fitted(LayerReader(tiny_store({"a": np.zeros((8, 2, 3), np.float32)}, name="nothing.zarr")))


def test_the_seed_is_the_only_chance_and_more_parts_than_rows_are_fine(tiny_store: Made) -> None:
    x, _, _ = sums_of_parts()
    reader = LayerReader(tiny_store({"a": x}))
    state = np.random.get_state()[1].copy()
    one, two, other = (fitted(reader, iterations="5", seed=seed).directions_ for seed in ("0", "0", "1"))
    assert (state == np.random.get_state()[1]).all()
    assert (one.signals == two.signals).all()
    assert not (one.signals == other.signals).all()
    few = LayerReader(tiny_store({"a": x[:4, :2]}, name="few.zarr"))
    assert fitted(few, 20, iterations="2").directions_.count == 20
