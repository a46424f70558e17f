"""Names by words at scale: what time and memory owe to the number of images. ``python -m tests.benchmarks words``.

500 directions against 500 random ones, 20 000 words, 100 images of each direction; tiny pictures and an encoder that costs next to nothing, so that what
is measured is ours. Each number of images runs in a process of its own, in one thread, on the same pictures under other names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.models import transforms as T
from extract.stream import extract
from pipeline.evaluation_parts import Subject
from pipeline.firing_examples import find_examples
from pipeline.vocabulary_labels import find_words
from stores.directions import Directions
from stores.readers import LayerReader
from stores.store import ActivationStore
from tests.benchmarks.dissection import status
from tests.benchmarks.measure import Row

DIRECTIONS, WORDS, SIZES = 500, 20_000, (2000, 10_000, 50_000)
SIDE, CHANNELS, WIDTH = 32, 64, 512  # of pictures, of the layer, of embeddings
PICTURES = 500  # different ones; the others are the same under other names
MODEL, ENCODER = "tests.benchmarks.words:network", "tests.benchmarks.words:Encoder"


def network() -> tuple[nn.Module, T.Compose]:
    """For ``--model``: 8 × 8 positions."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)
    )
    return module, T.Compose([T.Resize((SIDE, SIDE)), T.ToTensor()])


class Encoder:
    """For ``--encoder``: drawn weights on the pixels, and on a text numbers drawn from its bytes."""

    preprocess = staticmethod(T.Compose([T.Resize((8, 8)), T.ToTensor()]))

    def __init__(self) -> None:
        self.weight = torch.randn(192, WIDTH, generator=torch.Generator().manual_seed(0))

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1) @ self.weight

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        drawn = [np.random.default_rng(zlib.crc32(t.encode())).standard_normal(WIDTH, np.float32) for t in texts]
        return torch.from_numpy(np.stack(drawn))


def pictures(folder: Path, images: int) -> None:
    """Noise of two scales."""
    folder.mkdir(parents=True)
    g = np.random.default_rng(0)
    for k in range(images):
        file = folder / f"{k:06d}.png"
        if k >= PICTURES:
            file.hardlink_to(folder / f"{k % PICTURES:06d}.png")
            continue
        coarse = Image.fromarray(g.integers(0, 256, (4, 4, 3), np.uint8)).resize((SIDE, SIDE))
        fine = g.normal(0, 20, (SIDE, SIDE, 3))
        Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(file)


def rows(folder: Path) -> Iterator[Row]:
    spent: list[tuple[float, float]] = []
    for images in SIZES:
        command = [sys.executable, "-m", "tests.benchmarks.words", str(images), str(folder / f"{images}")]
        said = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        seconds, peak, parts = said.stdout.strip().split(" ", 2)
        spent.append((float(seconds), float(peak)))
        if images == SIZES[0]:
            continue
        what, against = f"names for {DIRECTIONS} directions, {WORDS} words, {images} images", f"{SIZES[0]} images"
        (s, m), (t, n) = spent[0], spent[-1]
        yield Row(what, against, t / s, "lower", f"{t:.0f} and {s:.0f} s of processor time ({parts})")
        yield Row("its peak memory", against, n / m, "lower", f"{n:.0f} and {m:.0f} MiB")


def main(images: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    pictures(folder / "images", images)
    config = ExtractConfig(MODEL, ("1",), weights="none")
    extract(open_source(folder / "images"), folder / "s.zarr", config)
    (folder / "words.txt").write_text("\n".join(f"word {k}" for k in range(WORDS)))
    store = ActivationStore.open(folder / "s.zarr", model=MODEL)
    w = np.random.default_rng(1).normal(size=(CHANNELS, DIRECTIONS)).astype(np.float32)
    z = LayerReader(store, "1").sampled_rows(20_000, 0) @ w
    thresholds = np.quantile(z, 0.995, axis=0).astype(np.float32)  # each fires on the same share of positions
    mine = Directions(w, w, np.zeros(CHANNELS, np.float32), thresholds, "bench", "1")
    del z
    subject = Subject(store, "1", {"d": mine})
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    start = time.process_time()
    examples = find_examples(subject, ENCODER, 0, texts=True)
    embedded = time.process_time()
    find_words(subject, examples, (folder / "words.txt").read_text().splitlines(), 0)
    end = time.process_time()
    print(  # noqa: T201
        end - start, (status("VmHWM") - before) / 1024,
        f"{embedded - start:.0f} of them to find, cut and embed {len(examples.embedded.known)} parts of images, {end - embedded:.0f} for words",
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
