"""Writing and reading a store against plain files of the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stores.activations import ActivationStore
from stores.layers import LayerSpec
from stores.readers import LayerReader
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, in_turns

N, P, C = 1024, 49, 1280
CHUNK = 256


def write(folder: Path, x: np.ndarray) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    names = [f"{i:07d}.jpg" for i in range(N)]
    writer = StoreWriter.create_or_resume(
        folder, layers=[LayerSpec("a", (7, 7), C)], names=names, n_classes=10, provenance={}, chunk_images=CHUNK
    )
    for k in writer.missing():
        part = slice(k * CHUNK, (k + 1) * CHUNK)
        writer.commit(
            k, names=names[part], labels=np.zeros(CHUNK), valid=np.ones(CHUNK, bool), logits=np.zeros((CHUNK, 10)),
            activations={"a": x[part]},
        )  # fmt: skip
    writer.seal()
    writer.close()
    return folder


def write_plain(folder: Path, x: np.ndarray) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for k in range(N // CHUNK):
        with (folder / str(k)).open("wb") as file:
            file.write(x[k * CHUNK : (k + 1) * CHUNK].data)
            file.flush()
            os.fsync(file.fileno())


def rows(folder: Path) -> Iterator[Row]:
    x = np.random.default_rng(0).random((N, P, C), np.float32).astype(np.float16)
    size = x.nbytes / 2**20
    ours, plain = in_turns(lambda: write(folder / "s.zarr", x), lambda: write_plain(folder / "plain", x))
    yield Row(
        "store write, with checksums and ledger",
        "raw files, synced",
        plain / ours,
        "higher",
        f"{size / ours:.0f} MiB/s",
    )
    np.save(folder / "x.npy", x)
    reader = LayerReader(ActivationStore.open(folder / "s.zarr"))

    def blocks() -> int:
        return sum(int(block.view(np.uint64).sum()) for _, block in reader.blocks())

    def memmap() -> int:
        mapped = np.load(folder / "x.npy", mmap_mode="r")
        return sum(int(mapped[k : k + CHUNK].view(np.uint64).sum()) for k in range(0, N, CHUNK))

    ours, plain = in_turns(blocks, memmap)
    yield Row(
        "sequential blocks", "one npy memmap", plain / ours, "higher", f"{size / ours:.0f} MiB/s, every byte summed"
    )
