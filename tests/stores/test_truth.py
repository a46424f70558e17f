"""The truth of synthetic stores, read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fit.synthetic import SyntheticConfig, make_synthetic
from stores.attachments import read_truth
from stores.errors import CorruptStoreError, MismatchError
from stores.readers import LayerReader
from stores.store import ActivationStore


def test_truth_is_read_as_it_was_made(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "s.zarr", SyntheticConfig(images=50, concepts=4, seed=3))
    reader = LayerReader(tmp_path / "s.zarr")
    truth = read_truth(reader.store.path)
    assert truth.signals.shape == (16, 4)
    assert truth.values.shape == truth.present.shape == (reader.n_rows, 4)
    assert truth.present.dtype == bool
    np.testing.assert_array_equal(truth.values > 2.5, truth.present)


def test_a_damaged_truth_is_refused(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "s.zarr", SyntheticConfig(images=50))
    file = tmp_path / "s.zarr/truth.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptStoreError, match=r"truth\.safetensors' is damaged"):
        read_truth(tmp_path / "s.zarr")


def test_other_stores_have_none(tmp_path: Path, make_store: Callable[..., ActivationStore]) -> None:
    plain = make_store(tmp_path / "s.zarr", np.zeros((1, 1, 2), np.float32), grid=(1, 1))
    with pytest.raises(MismatchError, match=r"no ground truth.*eddp synthetic"):
        read_truth(plain.path)
