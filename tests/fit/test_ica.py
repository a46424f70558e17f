"""Independent components: known sources; signs, order, errors, and that it samples what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fit.baselines.ica import GAUSSIAN, ICA, ICAConfig
from fit.config import FitterConfig, with_settings
from fit.whiten import whiten_store, whitening
from stores.directions import Directions
from stores.errors import FitError, UsageError
from stores.readers import LayerReader
from stores.statistics import statistics

N, P, C = 500, 8, 6
Made = Callable[..., Path]


def mixed(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (N, P, C), sources (N·P, 4) — two of them with a tail to one side — and the mixing (C, 4)."""
    g = np.random.default_rng(seed)
    rows = N * P
    sources = np.stack(
        [g.exponential(size=rows), -g.exponential(size=rows), g.uniform(-1, 1, rows), g.laplace(size=rows)], 1
    )
    mixing = g.normal(size=(C, 4))
    return (sources @ mixing.T + 10).astype(np.float32).reshape(N, P, C), sources, mixing


def fitted(reader: LayerReader, directions: int = 4, **settings: str) -> Directions:
    return (
        ICA(with_settings(ICAConfig(n_directions=directions), {"signs": "skewed", **settings})).fit(reader).directions_
    )


def test_it_finds_the_sources_and_signs_them_by_their_tail(tiny_store: Made) -> None:
    x, sources, mixing = mixed()
    found = fitted(LayerReader(tiny_store({"a": x})))
    z = found.logits(x.reshape(-1, C) - found.mean)
    correlation = np.corrcoef(z.T, sources.T)[:4, 4:]
    match = np.abs(correlation).argmax(1)
    assert sorted(match) == [0, 1, 2, 3]
    assert np.abs(correlation).max(1).min() > 0.99
    for i, source in enumerate(match):
        if source < 2:  # the tail is up: of −exponential, the direction in which it grows negative
            assert correlation[i, source] * (1, -1)[source] > 0.99
        cosine = found.signals[:, i] @ mixing[:, source] / np.linalg.norm(mixing[:, source])
        assert abs(cosine) > 0.99
    centred = z - z.mean(0)
    assert (np.mean(centred**3, 0) > -0.05).all()
    np.testing.assert_allclose((centred**2).mean(0), 1, rtol=1e-3)
    np.testing.assert_allclose((found.filters * found.signals).sum(0) > 0, True)
    assert found.info["converged"] is True


def test_both_signs_are_pairs_and_the_least_gaussian_come_first(tiny_store: Made) -> None:
    x, _, _ = mixed()
    reader = LayerReader(tiny_store({"a": x}))
    whole = fitted(reader, 4)
    pairs = fitted(reader, 5, signs="both", rank="4")
    np.testing.assert_array_equal(pairs.filters[:, 0], -pairs.filters[:, 1])
    np.testing.assert_array_equal(pairs.signals[:, 2], -pairs.signals[:, 3])
    np.testing.assert_allclose(pairs.filters[:, [0, 2, 4]], whole.filters[:, :3], rtol=1e-5, atol=1e-6)
    contrast = np.abs(np.array(whole.info["contrast"]) - GAUSSIAN)
    assert (np.diff(contrast) <= 0).all()
    assert whole.thresholds is None


def test_more_components_than_axes_are_refused(tiny_store: Made) -> None:
    reader = LayerReader(tiny_store({"a": mixed()[0]}))
    with pytest.raises(FitError, match="5 independent components .*layer 'a' vary along 4 axes only"):
        fitted(reader, 5)
    with pytest.raises(FitError, match="5 independent components .*9 directions, signs=both"):
        fitted(reader, 9, signs="both")
    assert fitted(reader, 8, signs="both").count == 8


@pytest.mark.parametrize(
    "setting", [{"iterations": "0"}, {"max_rows": "0"}, {"tolerance": "0"}, {"rank": "3"}, {"signs": "largest"}]
)
def test_settings_are_checked(setting: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        with_settings(ICAConfig(n_directions=4, signs="skewed"), setting)


def test_what_did_not_converge_says_so(tiny_store: Made, caplog: pytest.LogCaptureFixture) -> None:
    reader = LayerReader(tiny_store({"a": mixed()[0]}))
    with caplog.at_level(logging.WARNING):
        found = fitted(reader, iterations="1")
    assert found.info["converged"] is False
    assert "did not converge in 1 iterations" in caplog.text


def test_it_keeps_a_seeded_sample_of_rows_and_chunks_do_not_matter(tiny_store: Made) -> None:
    x, _, _ = mixed()
    small = LayerReader(tiny_store({"a": x}, name="small.zarr", chunk_images=3))
    large = LayerReader(tiny_store({"a": x}, name="large.zarr", chunk_images=100))
    one, two = (fitted(reader, max_rows="1000") for reader in (small, large))
    assert one.info["positions"] == two.info["positions"] == 1000
    np.testing.assert_allclose(one.filters, two.filters, atol=1e-3)
    rows = whiten_store(small, whitening(statistics(small), rank=4), FitterConfig(), max_rows=1000).rows
    assert rows.shape == (1000, 4)
    again = fitted(small, max_rows="1000")
    assert (one.filters == again.filters).all()
    assert not (fitted(small, max_rows="1000", seed="1").filters == one.filters).all()
