"""Whitening, clustering, thresholds, signals, diagnosis and settings: the parts a fit is put together from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fit.clustering import _torch_kmeans, nearest, spherical_kmeans
from fit.config import EDDPConfig, FitterConfig, with_settings
from fit.diagnostics import diagnose
from fit.init import best_f1_thresholds
from fit.signals import pattern
from fit.synthetic import SyntheticConfig, make_synthetic
from fit.whiten import whiten_store, whitening
from stores.errors import FitError, UnknownNameError, UsageError
from stores.readers import LayerReader
from stores.statistics import Statistics, statistics


def moments(x: np.ndarray) -> Statistics:
    return Statistics(x.mean(0), np.cov(x.T, bias=True), len(x))


def test_whitened_data_have_unit_covariance_and_come_back() -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(4000, 6)) @ g.normal(size=(6, 6)) + 5
    transform = whitening(moments(x), rank=6)
    y = transform(torch.from_numpy(x)).double().numpy()
    np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(y @ transform.backward.numpy().T + x.mean(0), x, atol=1e-3)
    assert transform.kept == pytest.approx(1)


def test_whitening_drops_axes_without_variance_and_truncates() -> None:
    g = np.random.default_rng(1)
    x = g.normal(size=(500, 3)) @ g.normal(size=(3, 8))
    assert whitening(moments(x), rank=64).rank == 3
    assert whitening(moments(x), rank=2).rank == 2
    shrunk = whitening(moments(x), rank=3, shrinkage=1.0)
    y = shrunk(torch.from_numpy(x)).double().numpy()
    assert np.diag(np.cov(y.T)).max() < 1  # damped
    with pytest.raises(FitError, match="do not vary"):
        whitening(moments(np.full((10, 4), 3.0)), rank=4)


def test_whitened_store_samples_and_pools(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "s.zarr", SyntheticConfig(images=300, positions=4))
    reader = LayerReader(tmp_path / "s.zarr")
    transform = whitening(statistics(reader), rank=64)
    whole = whiten_store(reader, transform, FitterConfig(), max_rows=10**6)
    x = np.concatenate([block for _, block in reader.blocks()])
    wanted = transform(torch.from_numpy(x))
    torch.testing.assert_close(whole.rows, wanted.reshape(-1, transform.rank), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.pooled, wanted.mean(1), rtol=1e-4, atol=1e-4)
    part = whiten_store(reader, transform, FitterConfig(), max_rows=100)
    chosen = np.sort(np.random.default_rng([0, 0x77]).choice(1200, 100, replace=False))
    torch.testing.assert_close(part.rows, whole.rows[torch.from_numpy(chosen)])
    torch.testing.assert_close(part.pooled, whole.pooled)


def blobs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Directions around four axes, at all lengths."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.eye(4)
    member = torch.arange(400) % 4
    rows = (centre[member] + 0.1 * torch.randn(400, 4, generator=g)) * torch.rand(400, 1, generator=g).add(0.1)
    return rows, member, centre


def test_clustering_finds_directions_at_any_length_and_leaves_zero_vectors_out() -> None:
    rows, member, _ = blobs()
    rows = torch.cat([rows, torch.zeros(3, 4)])
    clusters = spherical_kmeans(rows, 4, seed=0)
    assert (clusters.assignment[-3:] == -1).all()
    found = clusters.assignment[:-3]
    for k in range(4):  # one cluster a direction
        assert len(set(found[member == k].tolist())) == 1
    torch.testing.assert_close(clusters.centroids.norm(dim=1), torch.ones(4))
    assert clusters.engine == "faiss"
    assert clusters.objective > 0.97


def test_torch_kmeans_is_as_good_as_faiss() -> None:
    rows, _, _ = blobs(1)
    unit = F.normalize(rows, dim=1)
    ours = nearest(unit, _torch_kmeans(unit, 6, 0, 25, 3))[0].mean()
    assert float(ours) >= spherical_kmeans(rows, 6, seed=0).objective - 0.01


def test_torch_kmeans_fills_empty_clusters() -> None:
    unit = F.normalize(torch.cat([torch.tensor([[1.0, 0.0]]).repeat(50, 1), torch.tensor([[0.0, 1.0]])]), dim=1)
    unit = unit + 0.001 * torch.randn(51, 2, generator=torch.Generator().manual_seed(0))
    centroids = _torch_kmeans(F.normalize(unit, dim=1), 3, 0, 10, 1)
    assert torch.isfinite(centroids).all()
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3))


def test_more_directions_than_vectors_is_one_message() -> None:
    with pytest.raises(FitError, match=r"9 directions .* only 5 activation vectors"):
        spherical_kmeans(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), 9, seed=0)


def test_best_f1_threshold_separates_exactly_and_equals_brute_force() -> None:
    projection = torch.tensor([[5.0], [4.0], [1.0], [0.0]])
    member = torch.tensor([0, 0, 1, 1])
    assert float(best_f1_thresholds(projection, member)[0]) == pytest.approx(2.5)
    g = torch.Generator().manual_seed(0)
    projection, member = torch.randn(60, 3, generator=g), torch.randint(-1, 3, (60,), generator=g)
    for i, threshold in enumerate(best_f1_thresholds(projection, member).tolist()):
        scores = []
        for candidate in [threshold, *(projection[:, i] - 1e-6).tolist()]:
            on, truth = projection[:, i] > candidate, member == i
            scores.append(2 * int((on & truth).sum()) / max(int(on.sum() + truth.sum()), 1))
        assert scores[0] == pytest.approx(max(scores))


def test_pattern_of_ideal_filters_is_the_truth() -> None:
    g = np.random.default_rng(0)
    s = g.normal(size=(6, 3))
    s /= np.linalg.norm(s, axis=0)
    x = g.normal(size=(20_000, 3)) @ s.T
    w = np.linalg.pinv(s).T
    found = pattern(torch.from_numpy(np.cov(x.T)), torch.from_numpy(w)).numpy()
    assert (np.abs((found * s).sum(0)) > 0.999).all()


def test_diagnosis_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    filters = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.01, 1.0]])
    thresholds = torch.tensor([0.5, 0.5, 5.0])
    found = diagnose(rows, filters, thresholds, filters, tile=3)
    assert found["dead"] == [2]
    assert found["overfull"] == [0, 1]
    assert found["duplicates"] == [[0, 1]]
    assert found["coverage"] == 0.75
    assert found["redundancy"] == 2.0
    assert found["agreement_in_fit_coordinates"] == pytest.approx(1)
    at_right_angles = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    found = diagnose(rows[:3], at_right_angles, torch.tensor([0.5, 0.5]), at_right_angles)
    assert found["duplicates"] == [[0, 1]]  # they are positive at the same positions


def test_settings_are_converted_and_refused() -> None:
    base = EDDPConfig(n_directions=4)
    changed = with_settings(
        base, {"refine_steps": "7", "rho": "0.3", "rank": "none", "uncertainty_objective": "entropy"}
    )
    assert (changed.refine_steps, changed.rho, changed.rank, changed.uncertainty_objective) == (7, 0.3, None, "entropy")
    with pytest.raises(UnknownNameError, match="Did you mean refine_steps"):
        with_settings(base, {"refine_step": "7"})
    with pytest.raises(UsageError, match="must be a number of kind int"):
        with_settings(base, {"refine_steps": "many"})
    with pytest.raises(UsageError, match="must be one of kl, entropy"):
        with_settings(base, {"uncertainty_objective": "mse"})
    with pytest.raises(UsageError, match="must be positive"):
        with_settings(base, {"learning_rate": "-1"})
    with pytest.raises(UsageError, match="between 0 and 1"):
        with_settings(base, {"rho": "2"})
    with pytest.raises(UsageError, match=r"--directions\) must be at least 1, got 0"):
        EDDPConfig(n_directions=0)
