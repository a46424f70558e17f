"""A store in an object store (moto, in a process of its own): what is asked of it and fetched, against the least there can be."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stores import objects
from stores.cache import kept_in
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.paths import as_path
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, in_turns

N, P, C, CHUNK = 1024, 49, 1280, 64
MANY = 1000  # chunks of one image, for what opening costs
ROWS = 1000
URL = "s3://bench/acts.zarr"


@contextmanager
def server() -> Iterator[None]:
    """An S3-compatible server with a bucket, found by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
             "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}  # fmt: skip
    before = {name: os.environ.get(name) for name in names}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.environ.update(names)
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        objects.filesystem("s3").mkdir("bench")
        yield
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def asked() -> Iterator[Counter[str]]:
    """Requests that read objects in the block, and the bytes that came."""
    found: Counter[str] = Counter()
    whole = objects._ranges

    def counted(*arguments: Any, **more: Any) -> list[Any]:
        results = whole(*arguments, **more)
        found["requests"] += len(results)
        found["bytes"] += sum(len(result) for result in results if isinstance(result, bytes))
        return results

    objects._ranges = counted
    try:
        yield found
    finally:
        objects._ranges = whole


def write(path: Path, x: np.ndarray, chunk: int) -> None:
    n = len(x)
    names = [f"{i:07d}.jpg" for i in range(n)]
    layer = LayerSpec("a", (1, x.shape[1]), x.shape[2])
    plan = StorePlan(layers=[layer], names=names, n_classes=10, provenance={}, chunk_images=chunk)
    writer = StoreWriter.open(path, plan)
    for k in writer.missing():
        part = slice(k * chunk, min(n, (k + 1) * chunk))
        m = len(names[part])
        writer.commit(
            k, names=names[part], labels=np.zeros(m), valid=np.ones(m, bool), logits=np.zeros((m, 10), np.float32),
            activations={"a": x[part]},
        )  # fmt: skip
    writer.seal()
    writer.close()


def rows(folder: Path) -> Iterator[Row]:
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        return
    x = np.random.default_rng(0).random((N, P, C), np.float32).astype(np.float16)
    size = x.nbytes / 2**20
    write(folder / "local.zarr", x, CHUNK)
    local = LayerReader(folder / "local.zarr")
    write(as_path("memory://bench/many.zarr"), np.zeros((MANY, 1, 1), np.float16), 1)
    with asked() as found:
        ActivationStore.open("memory://bench/many.zarr")
    yield Row(f"open a store of {MANY} chunks: objects read", "its chunks", found["requests"] / MANY, "lower",
              f"{found['requests']} requests")  # fmt: skip
    with server():
        begun = time.perf_counter()
        write(as_path(URL), x, CHUNK)
        written = size / (time.perf_counter() - begun)
        remote = LayerReader(URL)

        def stream(reader: LayerReader) -> None:
            for _, block in reader.blocks():
                block[:, 0].sum()

        keys = [f"bench/acts.zarr/layers/a/activations/c.{k}.0.0" for k in range(N // CHUNK)]
        system = objects.filesystem("s3")

        def plain() -> None:
            for start in range(0, len(keys), 4):
                system.cat_ranges(keys[start : start + 4], 0, int(x[:CHUNK].nbytes))

        with asked() as found:
            stream(remote)
        ours, theirs = in_turns(lambda: stream(remote), plain, repeats=3)
        yield Row("stream a layer from S3", "s3fs, four objects at a time", theirs / ours, "higher",
                  f"{size / ours:.0f} against {size / theirs:.0f} MiB/s (written at {written:.0f}); {found['requests']} requests, "
                  f"{found['bytes'] / 2**20:.0f} of {size:.0f} MiB")  # fmt: skip
        chosen = np.random.default_rng(1).choice(remote.n_rows, ROWS, replace=False)
        with asked() as found:
            got = remote.rows(chosen)
        assert np.array_equal(got, local.rows(chosen))
        yield Row(f"{ROWS} random rows from S3: bytes", "all chunks whole", found["bytes"] / x.nbytes, "lower",
                  f"{found['requests']} requests, {found['bytes'] / 2**20:.1f} of {size:.0f} MiB")  # fmt: skip
        with kept_in(folder / "cache"):
            kept = LayerReader(URL)
            stream(kept)
            with asked() as found:
                again = LayerReader(URL)
                stream(again)
                again.rows(chosen)
        seconds = in_turns(lambda: stream(kept), lambda: stream(local))
        yield Row("stream a layer from the local copy", "from a local store", seconds[1] / seconds[0], "higher",
                  f"{size / seconds[0]:.0f} against {size / seconds[1]:.0f} MiB/s; opening it again: {found['requests']} requests")  # fmt: skip
        seconds = in_turns(lambda: kept.rows(chosen), lambda: local.rows(chosen))
        yield Row(f"{ROWS} random rows from the local copy", "from a local store", seconds[1] / seconds[0], "higher",
                  f"{1000 * seconds[0]:.2f} against {1000 * seconds[1]:.2f} ms")  # fmt: skip
