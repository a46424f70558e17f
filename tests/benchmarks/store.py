"""Writing and reading a store against plain files of the same bytes, and against Zarr's own way of reading it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr

from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.readers import LayerReader
from stores.shuffle import Shuffle, shuffled
from stores.store import ActivationStore
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, in_turns

N, P, C = 4096, 49, 1280
CHUNK = 256
BATCH = 4096


def write(folder: Path, x: np.ndarray, *, compress: str = "none") -> Path:
    """As extraction does: two threads that commit."""
    names = [f"{i:07d}.jpg" for i in range(N)]
    plan = StorePlan(
        layers=[LayerSpec("a", (7, 7), C)],
        names=names,
        n_classes=1000,
        provenance={},
        chunk_images=CHUNK,
        compress=compress,
    )
    writer = StoreWriter.open(folder, plan)

    logits = np.zeros((CHUNK, 1000), np.float32)

    def commit(k: int) -> None:
        part = slice(k * CHUNK, (k + 1) * CHUNK)
        writer.commit(
            k, names=names[part], labels=np.zeros(CHUNK), valid=np.ones(CHUNK, bool), logits=logits,
            activations={"a": x[part]},
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(commit, writer.missing()))
    writer.seal()
    writer.close()
    return folder


def write_plain(folder: Path, x: np.ndarray) -> None:
    """The same activations and logits as raw files, each synced once, by two threads as well."""
    folder.mkdir()

    def put(k: int) -> None:
        for name, data in (("x", x[k * CHUNK : (k + 1) * CHUNK]), ("logits", np.zeros((CHUNK, 1000), np.float32))):
            with (folder / f"{name}{k}").open("wb") as file:
                file.write(data.data)
                file.flush()
                os.fsync(file.fileno())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, range(N // CHUNK)))


def rows(folder: Path) -> Iterator[Row]:
    x = np.random.default_rng(0).random((N, P, C), np.float32).astype(np.float16)
    size = x.nbytes / 2**20
    runs = iter(range(1000))

    def fresh() -> Path:
        """A folder that is not there; what was written before is deleted outside of what is timed."""
        for old in folder.glob("w*"):
            shutil.rmtree(old)
        os.sync()
        return folder / f"w{next(runs)}"

    ours, plain = in_turns(lambda p: write(p, x), lambda p: write_plain(p, x), prepare=fresh)
    yield Row(
        "store write, with checksums and records",
        "raw files, synced",
        plain / ours,
        "higher",
        f"{size / ours:.0f} MiB/s",
    )
    fresh()
    write(folder / "s.zarr", x)
    np.save(folder / "x.npy", x)
    yield from reading(folder, size)


def reading(folder: Path, size: float) -> Iterator[Row]:
    reader = LayerReader(ActivationStore.open(folder / "s.zarr"))
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    plain = zarr.open_array(folder / "s.zarr/layers/a/activations", mode="r")

    def blocks() -> int:
        return sum(int(block.view(np.uint64).sum()) for _, block in reader.blocks())

    def memmap() -> int:
        again = np.load(folder / "x.npy", mmap_mode="r")
        return sum(int(again[k : k + CHUNK].view(np.uint64).sum()) for k in range(0, N, CHUNK))

    a, b = in_turns(blocks, memmap)
    yield Row("sequential blocks", "one npy memmap", b / a, "higher", f"{size / a:.0f} MiB/s, every byte summed")

    g = np.random.default_rng(1)
    flat = mapped.reshape(-1, C)
    a, b = in_turns(
        lambda i: reader.rows(i), lambda i: flat[i], prepare=lambda: g.integers(0, N * P, BATCH), repeats=25
    )
    yield Row("4096 random rows", "one npy memmap", b / a, "higher", f"{BATCH / a / 1e6:.1f} million rows/s")
    few = 64  # Zarr reads a whole chunk for each chunk that is hit

    def by_zarr(i: np.ndarray) -> np.ndarray:
        return np.asarray(
            plain.get_coordinate_selection((np.repeat(i // P, C), np.repeat(i % P, C), np.tile(np.arange(C), few)))
        )

    a, b = in_turns(reader.rows, by_zarr, prepare=lambda: g.integers(0, N * P, few), repeats=3)
    yield Row(f"{few} random rows", "Zarr's own selection", b / a, "higher", f"{1000 * a:.2f} ms")

    def shuffle() -> None:
        for batch in shuffled(reader, Shuffle(BATCH, window_bytes=2**28)):
            assert batch.x.shape[1] == C

    order = g.permutation(N * P)

    def gather() -> None:
        for k in range(0, N * P, BATCH):
            flat[order[k : k + BATCH]]

    a, b = in_turns(shuffle, gather, repeats=3)
    yield Row(
        "shuffled reader, one epoch",
        "random rows of an npy memmap",
        b / a,
        "higher",
        f"{N * P / a / 1e6:.1f} million rows/s",
    )
    found = [len(np.unique(b.rows // P)) for b in shuffled(reader, Shuffle(BATCH, window_bytes=2**28))]
    ideal = N * (1 - (1 - 1 / N) ** BATCH)
    yield Row(
        "different images in a shuffled batch, window 256 MiB",
        "a perfect shuffle",
        float(np.mean(found)) / ideal,
        "higher",
        f"{np.mean(found):.0f} of {ideal:.0f}",
    )
    store = reader.store
    a, b = in_turns(store.verify, lambda: [file.read_bytes() for file in (folder / "s.zarr").rglob("c.*")], repeats=3)
    yield Row("eddp verify", "reading the files", b / a, "higher", f"{size / a:.0f} MiB/s")
    write(folder / "z.zarr", np.maximum(np.asarray(mapped) - np.float16(0.5), 0), compress="zstd")
    packed = LayerReader(folder / "z.zarr")
    theirs = zarr.open_array(folder / "z.zarr/layers/a/activations", mode="r")
    a, b = in_turns(
        lambda: [block[0, 0, 0] for _, block in packed.blocks()],
        lambda: [theirs[k : k + CHUNK][0, 0, 0] for k in range(0, N, CHUNK)],
        repeats=3,
    )
    yield Row("sequential blocks, zstd", "Zarr's own reading", b / a, "higher", f"{size / a:.0f} MiB/s decoded")
