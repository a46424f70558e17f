"""A local copy of a store of objects: each chunk fetched once, checked, mapped, and shared by processes."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from object_places import URL, Asked, X
from tiny import write_store

from stores import objects
from stores.cache import kept_in
from stores.errors import (
    CorruptStoreError,
)
from stores.readers import LayerReader
from stores.store import ActivationStore


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_stored_chunks_are_fetched_once_and_when_harmed(
    remote: Path, tmp_path: Path, asked: Asked, caplog: pytest.LogCaptureFixture, compress: str
) -> None:
    x = {"a": np.random.default_rng(0).standard_normal((8, 1024, 1)).astype(np.float32)}
    write_store(remote, x, compress=compress)
    flat = x["a"].reshape(-1, 1)

    def read() -> Counter[str]:
        with asked() as requests, kept_in(tmp_path / "cache"):
            reader = LayerReader(URL)
            assert np.array_equal(np.concatenate([block for _, block in reader.blocks()]), x["a"])
            assert (reader.mapping is None) == (compress == "zstd")
            assert np.array_equal(reader.rows([8000, 3]), flat[[8000, 3]])
            assert np.array_equal(reader.images([7, 0]), x["a"][[7, 0]])
        return requests

    few = 2  # the root, the manifest
    assert read()["get"] == few + 2 + 2  # which images are readable, activations
    assert read()["get"] == few
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == ActivationStore.open(URL).fingerprint.removeprefix("sha256:")
    chunk = folder / "layers/a/activations/c.1.0.0"
    good = chunk.read_bytes()
    assert good == (remote / "layers/a/activations/c.1.0.0").read_bytes()
    chunk.write_bytes(good[: len(good) // 2])
    assert read()["get"] == few + 1
    chunk.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert read()["get"] == few + 1
    assert "Fetched again" in caplog.text
    assert chunk.read_bytes() == good
    assert not list(folder.rglob("*.partial"))


def test_few_rows_do_not_fetch_all_of_a_store(remote: Path, tmp_path: Path, asked: Asked) -> None:
    write_store(remote, X)
    with kept_in(tmp_path / "cache"), asked() as requests:
        reader = LayerReader(URL)
        opened = requests["get"]
        reader.rows([0, 6000])
    assert requests["get"] == opened + 2
    assert not list((tmp_path / "cache").rglob("layers/**/c.*"))


def test_what_is_stored_is_checked_when_it_comes(remote: Path, tmp_path: Path) -> None:
    write_store(remote, X)
    data = (remote / "layers/a/activations/c.2.0.0").read_bytes()
    objects.put({remote / "layers/a/activations/c.2.0.0": data[:-1] + b"\x7f"})
    with kept_in(tmp_path / "cache"):
        reader = LayerReader(URL)
    with pytest.raises(CorruptStoreError, match="Chunk 2 of 'layers/a/activations' .* was changed after"):
        list(reader.blocks())
    assert not list((tmp_path / "cache").rglob("activations/c.2.0.0"))


def test_two_processes_fill_one_cache(remote: Path, tmp_path: Path) -> None:
    """Threads with stores of their own: they share nothing but the folder."""
    write_store(remote, X)
    wrong: list[BaseException] = []
    with kept_in(tmp_path / "cache"):
        readers = [LayerReader(URL) for _ in range(4)]

    def work(reader: LayerReader) -> None:
        try:
            assert reader.mapping is not None
            assert np.array_equal(reader.rows(range(reader.n_rows)), X["a"].reshape(-1, 4))
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list((tmp_path / "cache").rglob("activations/c.*"))) == math.ceil(26 / 4)


def test_a_local_store_uses_no_cache(tiny_store: Callable[..., Path], tmp_path: Path) -> None:
    with kept_in(tmp_path / "cache"):
        list(LayerReader(tiny_store(X)).blocks())
    assert not (tmp_path / "cache").exists()
