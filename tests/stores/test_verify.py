"""Every changed, cut or lengthened file of a store is found, and all of them are listed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import contents, noise, write_store

from stores.attachments import write_attachment
from stores.errors import CorruptStoreError, MissingPathError, StoreError
from stores.format import LayerSpec
from stores.readers import LayerReader
from stores.sketch import quantile_sketch
from stores.statistics import statistics
from stores.store import ActivationStore

Make = Callable[..., Path]


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_every_changed_byte_of_a_store_is_found(tmp_path: Path, compress: str) -> None:
    """Whichever file, and also by opening alone where it is metadata; attachments included."""
    layers = {"a": noise(3, 1), "s": noise(3, 2)}
    path = write_store(
        tmp_path / "s", layers, chunk_images=2, n_classes=2, names=["a", "caf\udce9", "c"], compress=compress,
        heads={"a": (np.ones((2, 2), np.float32), np.zeros(2, np.float32))}, valid=np.array([True, False, True]),
        specs={"s": LayerSpec("s", (3, 3), 2, 0, 2)}, positions={"s": np.array([[0, 8], [1, 2], [3, 4]])},
    )  # fmt: skip
    for layer in layers:
        statistics(LayerReader(path, layer))
        quantile_sketch(LayerReader(path, layer))
    write_attachment(path / "truth.safetensors", {"signals": np.eye(3)}, {})
    assert ActivationStore.open(path).verify() == []
    g = np.random.default_rng(0)
    for name, data in sorted(contents(path).items()):
        harms = {"cut": data[:-1], "longer": data + b"\n", "empty": b""}
        for i in g.choice(len(data), min(len(data), 6), replace=False).tolist():
            harms[str(i)] = data[:i] + bytes([data[i] ^ int(g.integers(1, 256))]) + data[i + 1 :]
        for harm, harmed in harms.items():
            (path / name).write_bytes(harmed)
            opened = True
            try:
                problems = ActivationStore.open(path).verify()
            except (StoreError, MissingPathError) as error:
                problems, opened = [str(error)], False
            assert problems, (name, harm)
            if name in ("zarr.json", "manifest.jsonl"):
                assert not opened, (name, harm)
        (path / name).write_bytes(data)
    assert ActivationStore.open(path).verify() == []


def test_verifying_says_how_far_it_is(tiny_store: Make) -> None:
    calls: list[tuple] = []
    path = tiny_store({"a": noise(20, 49, 1024)})
    ActivationStore.open(path).verify(lambda *args: calls.append(args))
    total = sum(f.stat().st_size for f in path.rglob("c.*")) >> 20
    assert calls[-1] == ("verifying", total, total, "MiB")


def test_a_damaged_cache_is_reported_with_what_to_do(tiny_store: Make) -> None:
    path = tiny_store({"a": noise(4)})
    wanted = statistics(LayerReader(path))
    file = path / "layers/a/statistics.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (problem,) = ActivationStore.open(path).verify()
    assert f"it is computed again when '{file}' is deleted" in problem
    assert np.array_equal(statistics(LayerReader(path)).mean, wanted.mean)
    assert ActivationStore.open(path).verify() == []


def test_verify_lists_everything(tiny_store: Make) -> None:
    """Also of a store that does not open, and more than its first problems."""
    path = tiny_store({"a": noise(40)}, heads={"a": (np.ones((3, 2), np.float32), np.zeros(3, np.float32))})
    folder = path / "layers/a/activations"
    for k in range(6):
        (folder / f"c.{k}.0.0").unlink()
    (folder / "c.6.0.0").write_bytes(b"short")
    data = (folder / "c.7.0.0").read_bytes()
    (folder / "c.7.0.0").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (path / "images/zarr.json").unlink()
    (path / "images/valid/zarr.json").write_text("{}")
    shutil.rmtree(path / "layers/a/head_bias")
    with pytest.raises(CorruptStoreError):
        ActivationStore.open(path)
    problems = ActivationStore.examine(path).verify()
    for k in range(6):
        assert f"chunk {k} of layers/a/activations: No such file or directory" in problems
    assert "chunk 6 of layers/a/activations: 5 bytes instead of 96" in problems
    assert "chunk 7 of layers/a/activations: its bytes do not match its recorded checksum" in problems
    assert "images/zarr.json: No such file or directory" in problems
    assert "images/valid/zarr.json: changed since it was written" in problems
    assert any("head_bias" in p for p in problems)
    (path / "manifest.jsonl").write_text("{")
    assert any("manifest" in p and "no chunks were checked" in p for p in ActivationStore.examine(path).verify())


def test_verify_misses_the_truth_of_a_synthetic_store(tiny_store: Make) -> None:
    path = tiny_store({"a": noise(4)}, provenance={"model": "synthetic"})
    assert ActivationStore.open(path).verify() == ["truth: missing, although the store is a synthetic one"]
    write_attachment(path / "truth.safetensors", {"signals": np.eye(3)}, {})
    assert ActivationStore.open(path).verify() == []
