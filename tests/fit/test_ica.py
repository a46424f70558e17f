"""FastICA against scikit-learn's on the same rows; signs, order, errors, and that it samples what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import FastICA

from fit.baselines.ica import GAUSSIAN, ICA, ICAConfig, decorrelated, fast_ica, shapes
from fit.settings import with_settings
from fit.whiten import whiten_store, whitening
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


def fitted(reader: LayerReader, directions: int = 4, **settings: str) -> tuple:
    found = ICA(with_settings(ICAConfig(n_directions=directions), {"signs": "skewed", **settings})).fit(reader)
    return found.directions_, found.log_


def test_components_are_scikit_learns_on_the_same_rows(tiny_store: Made) -> None:
    x, _, _ = mixed()
    reader = LayerReader(tiny_store({"a": x}))
    found, _ = fitted(reader, tolerance="1e-6")
    theirs = FastICA(4, whiten="unit-variance", random_state=0, tol=1e-6, max_iter=500)
    sources = theirs.fit_transform(x.reshape(-1, C).astype(np.float64))
    ours = found.logits(x.reshape(-1, C) - found.mean)
    correlation = np.abs(np.corrcoef(ours.T, sources.T)[:4, 4:])
    np.testing.assert_allclose(np.sort(correlation, 1)[:, -1], 1, atol=1e-5)
    assert sorted(correlation.argmax(1)) == [0, 1, 2, 3]
    mixing = theirs.mixing_ / np.linalg.norm(theirs.mixing_, axis=0)
    np.testing.assert_allclose(np.abs((found.signals * mixing[:, correlation.argmax(1)]).sum(0)), 1, atol=1e-5)


def test_every_iteration_is_scikit_learns_from_the_same_start() -> None:
    rows = torch.from_numpy(mixed()[0].reshape(-1, C)).double()
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    y = centred @ (vectors[:, -4:] * values[-4:].rsqrt())
    start = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for iterations in (1, 2, 5):
        found = fast_ica(y, seed=3, iterations=iterations, tolerance=1e-15)
        theirs = FastICA(whiten=False, w_init=start.numpy(), max_iter=iterations, tol=1e-300, whiten_solver="svd")
        with pytest.warns(match="did not converge"):
            theirs.fit(y.numpy())
        np.testing.assert_allclose(np.abs(found.unmixing.numpy()), np.abs(theirs.components_), atol=1e-8)
        assert len(found.changes) == iterations
        assert not found.converged


def test_it_finds_the_sources_and_signs_them_by_their_tail(tiny_store: Made) -> None:
    x, sources, mixing = mixed()
    found, log = fitted(LayerReader(tiny_store({"a": x})))
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
    assert found.info["iterations"] == len(log)
    assert log[-1]["change"] < 1e-4


def test_both_signs_are_pairs_and_the_least_gaussian_come_first(tiny_store: Made) -> None:
    x, _, _ = mixed()
    reader = LayerReader(tiny_store({"a": x}))
    whole, _ = fitted(reader, 4)
    pairs, _ = fitted(reader, 5, signs="both", rank="4")
    np.testing.assert_array_equal(pairs.filters[:, 0], -pairs.filters[:, 1])
    np.testing.assert_array_equal(pairs.signals[:, 2], -pairs.signals[:, 3])
    np.testing.assert_allclose(pairs.filters[:, [0, 2, 4]], whole.filters[:, :3], rtol=1e-5, atol=1e-6)
    contrast = np.abs(np.array(whole.info["contrast"]) - GAUSSIAN)
    assert (np.diff(contrast) <= 0).all()
    assert whole.thresholds is None


def test_shapes_are_what_they_say() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(200_000, 2, generator=g, dtype=torch.float64)
    y[:, 1] = torch.empty(200_000, dtype=torch.float64).exponential_(generator=g) - 1
    contrast, skewness = shapes(y, torch.eye(2, dtype=torch.float64))
    assert float(contrast[0]) == pytest.approx(GAUSSIAN, abs=2e-3)
    assert float(contrast[1]) == pytest.approx(float(torch.log(torch.cosh(y[:, 1])).mean()), rel=1e-9)
    assert skewness.tolist() == pytest.approx([0, 2], abs=0.1)
    u = decorrelated(torch.randn(5, 5, generator=g, dtype=torch.float64))
    torch.testing.assert_close(u @ u.T, torch.eye(5, dtype=torch.float64))


def test_more_components_than_axes_is_one_sentence(tiny_store: Made) -> None:
    reader = LayerReader(tiny_store({"a": mixed()[0]}))
    with pytest.raises(FitError, match="5 independent components .*layer 'a' vary along 4 axes only"):
        fitted(reader, 5)
    with pytest.raises(FitError, match="5 independent components .*9 directions, signs=both"):
        fitted(reader, 9, signs="both")
    assert fitted(reader, 8, signs="both")[0].count == 8


@pytest.mark.parametrize(
    "setting", [{"iterations": "0"}, {"max_rows": "0"}, {"tolerance": "0"}, {"rank": "3"}, {"signs": "largest"}]
)
def test_settings_are_checked(setting: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        with_settings(ICAConfig(n_directions=4, signs="skewed"), setting)


def test_what_did_not_converge_says_so(tiny_store: Made, caplog: pytest.LogCaptureFixture) -> None:
    reader = LayerReader(tiny_store({"a": mixed()[0]}))
    with caplog.at_level(logging.WARNING):
        found, _ = fitted(reader, iterations="1")
    assert found.info["converged"] is False
    assert "did not converge in 1 iterations" in caplog.text


def test_it_keeps_a_seeded_sample_of_rows_and_chunks_do_not_matter(tiny_store: Made) -> None:
    x, _, _ = mixed()
    small = LayerReader(tiny_store({"a": x}, name="small.zarr", chunk_images=3))
    large = LayerReader(tiny_store({"a": x}, name="large.zarr", chunk_images=100))
    one, two = (fitted(reader, max_rows="1000")[0] for reader in (small, large))
    assert one.info["positions"] == two.info["positions"] == 1000
    np.testing.assert_allclose(one.filters, two.filters, atol=1e-3)
    rows = whiten_store(small, whitening(statistics(small), rank=4), max_rows=1000, seed=0, device="cpu").rows
    assert rows.shape == (1000, 4)
    again = fitted(small, max_rows="1000")[0]
    assert (one.filters == again.filters).all()
    assert not (fitted(small, max_rows="1000", seed="1")[0].filters == one.filters).all()


def test_stages_are_reported(tiny_store: Made) -> None:
    reader = LayerReader(tiny_store({"a": mixed()[0]}))
    seen = []
    ICA(ICAConfig(n_directions=4)).fit(reader, None, lambda stage, done, total=None, note="": seen.append(stage))
    assert list(dict.fromkeys(seen)) == ["statistics", "whitening", "components"]
