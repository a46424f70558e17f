"""One battery over every method, and what is particular to each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluate.ground_truth import against_truth
from extract.network import open_head
from fit import METHODS, SUPERVISED, make_fitter
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.attachments import read_truth
from stores.directions import Directions
from stores.errors import FitError, NonFiniteError, UnknownNameError
from stores.progress import Progress, silent
from stores.readers import LayerReader

QUICK = {
    "eddp": {"refine_steps": "30", "restart_steps": "30"},
    "sae": {"epochs": "5"},
    "uibe": {"a.epochs": "8"},
    "cbe": {"a.epochs": "8"},
}


def fit(method: str, reader: LayerReader, directions: int = 3, progress: Progress = silent, **more: str) -> Directions:
    wanted = None if method in SUPERVISED else directions  # they find one a label: here one a concept
    fitter = make_fitter(method, n_directions=wanted, settings={**QUICK.get(method, {}), **more}, refits=0)
    return fitter.fit(reader, open_head(reader.store, reader.spec.name), progress).directions_


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=30))
    return path


@pytest.fixture
def unchecked(small: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], LayerReader]:
    """Write values (N, P, C) over a small store's, as if it had been made of them; gives its reader."""
    monkeypatch.setattr("stores.chunks.ChunkedArray._compare", lambda *_: None)

    def overwrite(x: np.ndarray) -> LayerReader:
        (small / "layers/synthetic/activations/c.0.0.0").write_bytes(x.tobytes())
        return LayerReader(small)

    return overwrite


@pytest.mark.parametrize("method", sorted(METHODS))
class TestEveryMethod:
    def test_gives_unit_signals_and_survives_the_disk(self, method: str, reader: LayerReader, tmp_path: Path) -> None:
        found = fit(method, reader)
        assert found.filters.shape == found.signals.shape == (16, 3)
        assert found.filters.dtype == found.signals.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found.signals, axis=0), 1, rtol=1e-5)
        assert (found.method, found.layer) == (method, "synthetic")
        assert found.info["store"]["fingerprint"] == reader.store.fingerprint
        assert found.info["config"]["n_directions"] == 3
        again = fit(method, reader)
        assert (found.filters == again.filters).all()
        assert (found.signals == again.signals).all()
        found.save(tmp_path / "d.safetensors")
        stored = Directions.load(tmp_path / "d.safetensors")
        x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
        np.testing.assert_array_equal(found.logits(x), stored.logits(x))
        assert stored.info["config"] == found.info["config"]

    def test_nan_names_the_image(self, method: str, unchecked: Callable[[np.ndarray], LayerReader]) -> None:
        x = np.random.default_rng(0).random((30, 2, 16)).astype(np.float32)
        x[7, 0, 0] = np.nan
        with pytest.raises(NonFiniteError, match="synthetic-0000007"):
            fit(method, unchecked(x))


def test_too_many_directions_is_one_message(reader: LayerReader) -> None:
    with pytest.raises(FitError, match="40 directions .* 16 channels"):
        fit("pca", reader, 40)
    with pytest.raises(FitError, match="17 directions .* 16 channels"):
        fit("neurons", reader, 17)
    with pytest.raises(FitError, match="only 1800 activation vectors"):
        fit("kmeans", reader, 2000)
    with pytest.raises(UnknownNameError, match="no method 'magic'"):
        make_fitter("magic", n_directions=2)


def test_a_store_of_one_value_is_one_message(unchecked: Callable[[np.ndarray], LayerReader]) -> None:
    with pytest.raises(FitError, match="do not vary"):
        fit("eddp", unchecked(np.full((30, 2, 16), 3, np.float32)))


def test_pca_is_numpys_and_has_both_signs(reader: LayerReader) -> None:
    found = fit("pca", reader, 4)
    x = np.concatenate([block.reshape(-1, 16) for _, block in reader.blocks()]).astype(np.float64)
    vectors = np.linalg.eigh(np.cov(x.T))[1][:, ::-1]
    np.testing.assert_allclose(np.abs((found.filters * vectors[:, [0, 0, 1, 1]]).sum(0)), 1, rtol=1e-4)
    np.testing.assert_allclose(found.filters[:, 0], -found.filters[:, 1])
    assert found.thresholds is None


def test_neurons_are_channels_of_largest_variance(reader: LayerReader) -> None:
    found = fit("neurons", reader, 16)
    x = np.concatenate([block.reshape(-1, 16) for _, block in reader.blocks()])
    order = np.argsort(-x.var(0))
    assert found.info["neurons"] == order.tolist()
    assert (found.logits(x[:3]) == x[:3, order]).all()


@pytest.mark.parametrize("space", ["raw", "centred", "whitened"])
def test_kmeans_thresholds_detect_its_own_clusters(reader: LayerReader, space: str) -> None:
    found = fit("kmeans", reader, 3, space=space)
    x = np.concatenate([block.reshape(-1, 16) for _, block in reader.blocks()])
    share = (found.logits(x) > 0).mean(0)
    # raw clusters of data far from the origin all point the same way: detectors there, but poor ones
    low, high = (0, 1) if space == "raw" else (0.1, 0.9)
    assert ((share > low) & (share < high)).all()
    assert fit("kmeans", reader, 3, space=space, threshold="quantile").thresholds is None


def test_eddp_recovers_the_truth_and_whitened_clusters_come_close(reader: LayerReader) -> None:
    truth = read_truth(reader.store.path)
    found = against_truth(fit("eddp", reader, 3, refine_steps="400", restart_steps="150"), reader, truth)
    assert min(found["iou"]) > 0.98
    assert min(found["cos"]) > 0.98  # a third of the paper's images
    assert found["rmse"] < 0.15
    clusters = against_truth(fit("kmeans", reader, 3, space="whitened"), reader, truth)
    assert min(clusters["iou"]) > 0.8
    raw = against_truth(fit("kmeans", reader, 3), reader, truth)
    assert np.mean(raw["iou"]) < np.mean(clusters["iou"])


def test_eddp_logs_what_it_minimised(reader: LayerReader) -> None:
    settings = {"refine_steps": "60", "restarts": "1", "regime": "sharp"}  # from the clusters themselves
    fitter = make_fitter("eddp", n_directions=3, settings=settings, refits=0)
    log = fitter.fit(reader, open_head(reader.store, "synthetic")).log_
    assert [row["step"] for row in log] == list(range(60))
    assert log[-1]["total"] < log[0]["total"]
    assert {"sparsity", "maximum_activation", "inactive", "orthogonality", "uncertainty", "entropy"} <= set(log[0])
    assert log[-1]["learning_rate"] == pytest.approx(2e-4, rel=0.1)


def test_eddp_without_a_head_or_without_steps(reader: LayerReader) -> None:
    for steps in ("5", "0"):
        start = make_fitter("eddp", n_directions=3, settings={"refine_steps": steps}, refits=0).fit(reader, None)
        assert start.directions_.info["uncertainty"] == "none"
    assert start.log_ == []
    assert start.directions_.count == 3
