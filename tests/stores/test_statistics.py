import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stores.statistics
import stores.tensors
from stores.attachments import read_attachment, write_attachment
from stores.errors import NonFiniteError
from stores.format import LayerSpec
from stores.readers import LayerReader
from stores.statistics import compute, statistics

Make = Callable[..., Path]


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = x.astype(np.float64).reshape(-1, x.shape[-1])
    return rows.mean(0), np.cov(rows.T, bias=True)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("tile", [1, 7, 10**6])
def test_against_float64(tiny_store: Make, monkeypatch: pytest.MonkeyPatch, offset: float, tile: int) -> None:
    g = np.random.default_rng(0)
    x = (g.normal(size=(40, 6, 5)) @ g.normal(size=(5, 5)) + offset).astype(np.float32)
    monkeypatch.setattr(stores.statistics, "TILE", tile)
    found = compute(LayerReader(tiny_store({"a": x}, chunk_images=7)))
    mean, covariance = exact(x)
    assert found.count == 240
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-4, atol=1e-4)
    assert np.array_equal(found.covariance, found.covariance.T)


def test_chunks_and_skipped_images_change_nothing(tiny_store: Make) -> None:
    x = np.random.default_rng(1).normal(3, 1, (20, 4, 3)).astype(np.float16)
    valid = np.arange(20) % 3 > 0
    one = compute(LayerReader(tiny_store({"a": x}, valid=valid, chunk_images=1, dtype="float16", name="one")))
    two = compute(LayerReader(tiny_store({"a": x}, valid=valid, chunk_images=20, dtype="float16", name="two")))
    mean, covariance = exact(x[valid])
    for found in (one, two):
        assert found.count == valid.sum() * 4
        np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-4, atol=1e-5)


def test_the_prefix_counts_only_when_asked_for(tiny_store: Make) -> None:
    x = np.random.default_rng(2).normal(size=(8, 3, 2)).astype(np.float32)
    path = tiny_store({"a": x}, specs={"a": LayerSpec("a", (1, 2), 2, prefix=1)})
    for prefix, part in ((False, x[:, 1:]), (True, x), (False, x[:, 1:])):  # each in turn also replaces what is kept
        np.testing.assert_allclose(statistics(LayerReader(path, prefix=prefix)).mean, exact(part)[0], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 5, 19])
def test_the_first_bad_image_is_named(tiny_store: Make, bad: float, at: int) -> None:
    x = np.ones((20, 2, 3), np.float32)
    x[at, 1, 2] = x[19, 0, 0] = bad
    reader = LayerReader(tiny_store({"a": x}, chunk_images=6))
    with pytest.raises(NonFiniteError, match=rf"Layer 'a' .* first for image 'c{at % 2}/image {at}\.jpg'"):
        statistics(reader)
    assert not (reader.store.path / "layers/a/statistics.safetensors").exists()


def test_values_that_overflow_are_reported(tiny_store: Make) -> None:
    x = np.random.default_rng(0).normal(0, 1e20, (20, 2, 3)).astype(np.float32)
    with pytest.raises(NonFiniteError, match="too large"):
        statistics(LayerReader(tiny_store({"a": x})))


def test_no_readable_image_at_all(tiny_store: Make) -> None:
    path = tiny_store({"a": np.ones((3, 2, 2), np.float32)}, valid=np.zeros(3, bool))
    with pytest.raises(NonFiniteError, match="holds no readable image"):
        statistics(LayerReader(path))


def no_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(stores.statistics, "compute", fail)


def test_stored_with_the_store_and_taken_from_there(tiny_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_store({"a": np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)})
    first = statistics(LayerReader(path))
    assert LayerReader(path).store.verify() == []
    no_computing(monkeypatch)
    again = statistics(LayerReader(path))
    assert np.array_equal(first.mean, again.mean)
    assert np.array_equal(first.covariance, again.covariance)
    assert first.count == again.count == 18
    with pytest.raises(AssertionError, match="computed again"):
        statistics(LayerReader(path), cache=False)


def test_another_stores_statistics_are_not_used(tiny_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(0)
    path = tiny_store({"a": g.normal(size=(9, 2, 3)).astype(np.float32)})
    wanted = statistics(LayerReader(path))
    file = path / "layers/a/statistics.safetensors"
    other = tiny_store({"a": g.normal(size=(9, 2, 3)).astype(np.float32)}, name="other")
    statistics(LayerReader(other))
    shutil.copy(other / "layers/a/statistics.safetensors", file)
    found = statistics(LayerReader(path))
    assert np.array_equal(found.mean, wanted.mean)
    assert np.array_equal(found.covariance, wanted.covariance)
    no_computing(monkeypatch)
    statistics(LayerReader(path))


@pytest.mark.parametrize("arrays", [{}, {"mean": np.zeros(2)}, {"mean": np.zeros(3), "covariance": np.eye(3)}])
def test_a_cache_that_is_complete_but_makes_no_sense_is_computed_anew(
    tiny_store: Callable[..., Path], arrays: dict
) -> None:
    path = tiny_store({"a": np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)})
    wanted = statistics(LayerReader(path), cache=False)
    file = path / "layers/a/statistics.safetensors"
    statistics(LayerReader(path))
    found = read_attachment(file)
    assert found is not None
    write_attachment(file, arrays, found[1])
    assert np.array_equal(statistics(LayerReader(path)).covariance, wanted.covariance)
