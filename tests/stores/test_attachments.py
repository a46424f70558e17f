"""Arrays stored next to the activations: complete or absent, every flipped byte found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fit.synthetic import SyntheticConfig, make_synthetic
from stores.attachments import (
    attachment_problem,
    read_attachment,
    read_cache,
    read_truth,
    write_attachment,
    write_cache,
)
from stores.errors import CorruptStoreError, MismatchError, StoreError
from stores.readers import LayerReader
from stores.store import ActivationStore

ARRAYS = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "empty": np.zeros((4, 0), np.float64),
    "scalar": np.array(7, np.uint8),
    "flags": np.array([True, False]),
}
ATTRIBUTES = {"version": 1, "share": 0.1, "names": ["ü", "b\udcff"], "nothing": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "a.safetensors"


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[k].dtype == wanted[k].dtype and np.array_equal(found[k], wanted[k]) for k in wanted
    )


def test_what_is_written_is_read(file: Path) -> None:
    assert read_attachment(file) is None
    write_attachment(file, ARRAYS, ATTRIBUTES)
    found = read_attachment(file)
    assert found is not None
    assert same(found[0], ARRAYS)
    assert found[1].items() >= ATTRIBUTES.items()
    found[0]["plain"][0] = 1  # a copy
    assert attachment_problem(file) is None
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(name) for name in ("int32", ">i8", "<f2", "float64", "bool", "uint16")]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_arrays_of_all_kinds(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    file = tmp_path_factory.mktemp("any") / "x"
    write_attachment(file, {"x": array.T}, {})
    found = read_attachment(file)
    assert found is not None
    np.testing.assert_array_equal(found[0]["x"], array.T)
    assert found[0]["x"].dtype == array.dtype.newbyteorder("=")


def test_every_flipped_byte_is_found(file: Path) -> None:
    write_attachment(file, {"x": np.arange(3.0), "n": np.zeros(2, np.int64)}, {"key": {"store": "sha256:1f", "n": 3}})
    data = file.read_bytes()
    for at in range(len(data)):
        for bits in (1 << at % 8, 0x20):
            file.write_bytes(data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :])
            assert f"'{file}'" in str(attachment_problem(file))
            assert read_cache(file, {"store": "sha256:1f", "n": 3}) is None
    for harmed in (b"", data[:-1], data + b" "):
        file.write_bytes(harmed)
        with pytest.raises(CorruptStoreError, match="Restore it from a copy, or make it again"):
            read_attachment(file)


@pytest.mark.parametrize("what", ["a folder", "a pipe"])
def test_something_else_in_its_place(file: Path, what: str) -> None:
    file.parent.mkdir()
    file.mkdir() if what == "a folder" else os.mkfifo(file)
    assert "it is no file" in str(attachment_problem(file))
    assert read_cache(file, {}) is None


def test_a_cache_is_used_for_its_key_only(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = {"store": "sha256:1", "version": 1}
    write_cache(file, key, {"x": np.ones(2)}, {"count": 3})
    found = read_cache(file, dict(key))
    assert found is not None
    assert same(found[0], {"x": np.ones(2)})
    assert found[1]["count"] == 3
    assert read_cache(file, {**key, "version": 2}) is None
    assert not caplog.text
    file.write_bytes(file.read_bytes()[:-1])
    assert read_cache(file, key) is None
    assert "Computed again" in caplog.text


def test_a_folder_that_cannot_be_written(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.parent.write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        write_attachment(file, ARRAYS, {})
    with caplog.at_level("INFO"):
        write_cache(file, {}, {}, {})
    assert "a.safetensors' is not stored" in caplog.text


def test_a_shortage_of_memory_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_attachment(file, ARRAYS, {})

    def exhausted(_: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", exhausted)
    with pytest.raises(MemoryError):
        read_attachment(file)


def test_truth_is_read_as_it_was_made(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "s.zarr", SyntheticConfig(images=50, concepts=4, seed=3))
    reader = LayerReader(tmp_path / "s.zarr")
    truth = read_truth(reader.store.path)
    assert truth.signals.shape == (16, 4)
    assert truth.values.shape == truth.present.shape == (reader.n_rows, 4)
    assert truth.present.dtype == bool
    np.testing.assert_array_equal(truth.values > 2.5, truth.present)


def test_other_stores_have_none(tmp_path: Path, make_store: Callable[..., ActivationStore]) -> None:
    plain = make_store(tmp_path / "s.zarr", np.zeros((1, 1, 2), np.float32), grid=(1, 1))
    with pytest.raises(MismatchError, match=r"no ground truth.*eddp synthetic"):
        read_truth(plain.path)
