"""The bank of detectors: whose columns are whose, and thresholds that are the exact top quantile of the whole store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate.detector_bank
from evaluate.detector_bank import block_images, make_bank, top_quantile
from stores.directions import Directions
from stores.errors import MismatchError
from stores.readers import LayerReader
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]
Make = Callable[..., Directions]


def quantile_by_sorting(values: np.ndarray, quantile: float) -> np.ndarray:
    """The middle between the smallest value of the top ``round(quantile · n)`` and the next one, of each column."""
    keep, ordered = max(1, round(quantile * len(values))), np.sort(values, axis=0)[::-1]
    return (ordered[min(keep, len(values)) - 1] + ordered[min(keep, len(values) - 1)]) / 2


@settings(deadline=None)
@given(
    n=st.integers(1, 9),
    p=st.integers(1, 4),
    chunk=st.integers(1, 4),
    quantile=st.sampled_from([0.005, 0.05, 0.2, 0.5, 0.999]),
    spread=st.sampled_from([1, 3, 1000]),  # 1: nearly all values are tied
    collected=st.sampled_from([1, 20, 2**26]),  # values at a time: one unit a pass, some, all
    seed=st.integers(0, 2**16),
)
def test_top_quantile_is_the_sorted_one(
    memory_reader: Callable[..., LayerReader],
    n: int,
    p: int,
    chunk: int,
    quantile: float,
    spread: int,
    collected: int,
    seed: int,
) -> None:
    x = np.random.default_rng(seed).integers(-spread, spread + 1, (n, p, 3)).astype(np.float32)
    filters = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 1.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.detector_bank, "VALUES", collected)
        found = top_quantile(memory_reader(x, (1, p), chunk_images=chunk), filters, quantile).numpy()
    values = x.reshape(-1, 3) @ filters.numpy()
    np.testing.assert_array_equal(found, quantile_by_sorting(values, quantile))
    above = (values > found).sum(0)
    assert (above <= max(1, round(quantile * n * p))).all()  # fewer where values are tied


def test_without_ties_exactly_the_quantile_is_above(tmp_path: Path, make_store: Store) -> None:
    x = np.random.default_rng(0).permutation(2000).reshape(40, 50, 1).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(5, 10), chunk_images=7))
    threshold = top_quantile(reader, torch.ones(1, 1), 0.005)
    assert threshold.tolist() == [1989.5]
    assert int((x > 1989.5).sum()) == 10
    calls: list[tuple[str, int, int | None]] = []
    top_quantile(
        reader, torch.ones(1, 1), 0.005, lambda stage, done, total=None, note="": calls.append((stage, done, total))
    )
    assert calls[-1] == ("quantiles", 40, 40)


def test_images_that_could_not_be_read_do_not_count(tmp_path: Path, make_store: Store) -> None:
    x = np.arange(10, dtype=np.float32).reshape(10, 1, 1)
    valid = np.arange(10) < 8
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 1), valid=valid))
    assert top_quantile(reader, torch.ones(1, 1), 0.25).tolist() == [5.5]
    nothing = LayerReader(make_store(tmp_path / "t.zarr", x, grid=(1, 1), valid=valid & False))
    assert top_quantile(nothing, torch.ones(1, 2), 0.25).tolist() == [0.0, 0.0]


def test_a_bank_keeps_sets_apart_and_thresholds_where_they_belong(
    tmp_path: Path, make_store: Store, make_directions: Make
) -> None:
    x = np.random.default_rng(1).integers(-50, 50, (12, 5, 3)).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 5)))
    g = np.random.default_rng(2)
    sets = {
        "own": make_directions(g.integers(-3, 4, (3, 2)), [1.5, -2.5]),
        "tenth": make_directions(g.integers(-3, 4, (3, 3)), quantile=0.1),
        "half": make_directions(g.integers(-3, 4, (3, 1)), quantile=0.5),
        "other tenth": make_directions(g.integers(-3, 4, (3, 2)), quantile=0.1),
    }
    bank = make_bank(sets, reader)
    assert bank.count == 8
    assert {n: (s.start, s.stop) for n, s in bank.slices.items()} == {
        "own": (0, 2), "tenth": (2, 5), "half": (5, 6), "other tenth": (6, 8),
    }  # fmt: skip
    rows = x.reshape(-1, 3)
    for name, directions in sets.items():
        part = bank.slices[name]
        z = rows @ directions.filters
        b = directions.thresholds if directions.thresholds is not None else quantile_by_sorting(z, directions.quantile)
        np.testing.assert_array_equal(bank.thresholds[part].numpy(), b)
        np.testing.assert_array_equal(bank.logits(x)[:, :, part].numpy().reshape(-1, directions.count), z - b)


def test_directions_of_another_layer_are_refused(tmp_path: Path, make_store: Store, make_directions: Make) -> None:
    reader = LayerReader(make_store(tmp_path / "s.zarr", np.zeros((2, 1, 3), np.float32), grid=(1, 1)))
    with pytest.raises(MismatchError, match=r"'layer4' \(3 channels\), not on 'conv'"):
        make_bank({"a": make_directions(np.eye(3), [0] * 3, layer="layer4")}, reader)
    with pytest.raises(MismatchError, match=r"'conv' \(2 channels\), not on 'conv' \(3"):
        make_bank({"a": make_directions(np.eye(2), [0] * 2)}, reader)


def test_blocks_stay_small_whatever_the_grid_and_the_bank(tmp_path: Path, make_store: Store) -> None:
    coarse = LayerReader(make_store(tmp_path / "a.zarr", np.zeros((1, 49, 1), np.float32), grid=(7, 7)))
    fine = LayerReader(make_store(tmp_path / "b.zarr", np.zeros((1, 3136, 1), np.float32), grid=(56, 56)))
    for reader in (coarse, fine):
        for detectors in (1, 500, 2048, 10**9):
            images = block_images(reader, detectors)
            assert images == 1 or images * reader.positions * detectors * 4 <= 2**28
    assert block_images(coarse, 64) == 65536 // 49


def test_the_threshold_does_not_depend_on_the_block_size(
    tmp_path: Path, make_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(3).integers(-9, 9, (23, 4, 2)).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 2), chunk_images=8))
    found = []
    for images in (1, 3, 100):
        monkeypatch.setattr(evaluate.detector_bank, "block_images", lambda reader, detectors, n=images: n)
        found.append(top_quantile(reader, torch.eye(2), 0.05).tolist())
    assert found[0] == found[1] == found[2]
