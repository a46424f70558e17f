"""What one direction, class, layer or label costs among ten times as many: ``python -m tests.benchmarks load``.

Each size runs in a process of its own, in one thread, on tiny data, so that what grows is what the count makes grow. Times are the
process's own, whatever else the machine does; memory is its peak beyond what it held before.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from evaluate.influence.influence_study import InfluenceConfig
from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.stream import extract
from fit.eddp import EDDP
from pipeline.evaluation import EvaluationConfig, evaluate_directions
from stores.directions import Directions
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.store import ActivationStore
from stores.writer import StoreWriter
from tests.benchmarks.dissection import status
from tests.benchmarks.measure import Row

CHANNELS, BLOCKS, LABELLED = 256, 200, 8
MODEL = "tests.benchmarks.load:deep"
Work = Callable[[], object]


class Deep(nn.Module):
    """Many small convolutions, one after the other."""

    input_size = (32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(BLOCKS)))
        for block in self.blocks:
            nn.init.dirac_(block[0].weight)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def deep() -> nn.Module:
    """For ``--model``."""
    torch.manual_seed(0)
    return Deep()


def store(path: Path, images: int, classes: int) -> ActivationStore:
    """Positive activations of 7 × 7 positions behind a pooled affine head."""
    g = np.random.default_rng(0)
    weight = (g.normal(size=(classes, CHANNELS)) / CHANNELS**0.5).astype(np.float32)
    x = np.maximum(g.normal(size=(images, 49, CHANNELS)), 0).astype(np.float32)
    plan = StorePlan(
        layers=[LayerSpec("a", (7, 7), CHANNELS)], names=[f"{k}.jpg" for k in range(images)], n_classes=classes,
        provenance={"model": "bench", "weights": "none"}, chunk_images=images,
        heads={"a": (weight, np.zeros(classes, np.float32))},
    )  # fmt: skip
    writer = StoreWriter.open(path, plan)
    writer.commit(
        0, names=plan.names, labels=np.zeros(images, np.int64), valid=np.ones(images, bool),
        logits=x.mean(1) @ weight.T * 5, activations={"a": x.astype(np.float16)},
    )  # fmt: skip
    writer.seal()
    writer.close()
    return ActivationStore.open(path)


def directions_of(path: Path, count: int, layer: str, channels: int) -> dict[str, tuple[Path, Directions]]:
    """Random ones, in a file."""
    w = np.random.default_rng(1).normal(size=(channels, count)).astype(np.float32)
    w /= np.linalg.norm(w, axis=0)
    made = Directions(w, w, np.zeros(channels, np.float32), np.full(count, 0.8, np.float32), "bench", layer)
    made.save(path)
    return {"d": (path, made)}


def write_concepts(root: Path, labels: int) -> None:
    """A Broden folder of ``LABELLED`` photographs with 32 × 32 masks that hold some of the labels each."""
    g = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    with (root / "label.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["number", "name", "category"], *([n, f"label {n}", "object"] for n in range(1, labels + 1))]
        )
    with (root / "index.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "split", "ih", "iw", "sh", "sw", "object"])
        for i in range(LABELLED):
            Image.fromarray(g.integers(0, 256, (32, 32, 3), np.uint8)).save(root / "images" / f"{i}.png")
            maps = g.integers(1, labels + 1, (16, 16)).repeat(2, 0).repeat(2, 1)
            Image.fromarray(np.stack([maps % 256, maps // 256, 0 * maps], -1).astype(np.uint8)).save(
                root / "images" / f"{i}_m.png"
            )
            out.writerow([f"{i}.png", ("train", "val")[i % 2], 32, 32, 32, 32, f"{i}_m.png"])


def fit(folder: Path, count: int) -> Work:
    """Few steps of each kind, for a step costs the same every time."""
    made = store(folder / "s.zarr", 64, 10)
    return lambda: EDDP(n_directions=count, restart_steps=2, refine_steps=5, refits=0).fit(made)


def influence(folder: Path, count: int) -> Work:
    made = store(folder / "s.zarr", 16, count)
    sets = directions_of(folder / "d.safetensors", 64, "a", CHANNELS)
    return lambda: evaluate_directions(made, sets, folder / "out", EvaluationConfig(influence=InfluenceConfig()))


def layers(folder: Path, count: int) -> Work:
    write_concepts(folder / "data", 10)
    names = tuple(f"blocks.{k}" for k in range(0, BLOCKS, BLOCKS // count))
    config = ExtractConfig(MODEL, names, weights="none", limit=4)
    return lambda: extract(open_source(folder / "data"), folder / "s.zarr", config)


def dissection(folder: Path, directions: int, labels: int) -> Work:
    write_concepts(folder / "data", labels)
    extract(open_source(folder / "data"), folder / "s.zarr", ExtractConfig(MODEL, ("stem",), weights="none"))
    made = ActivationStore.open(folder / "s.zarr", model=MODEL)
    sets = directions_of(folder / "d.safetensors", directions, "stem", 8)
    return lambda: evaluate_directions(made, sets, folder / "out", EvaluationConfig(broden=folder / "data"))


CASES: dict[str, tuple[Callable[[Path, int], Work], int, str]] = {
    "fit": (fit, 2000, "directions, EDDP on 3136 positions"),
    "influence": (influence, 5000, "classes, influence of 64 directions"),
    "layers": (layers, 200, "layers, extract of 4 images"),
    "directions": (lambda folder, n: dissection(folder, n, 10_000), 2000, "directions, evaluate with 10 000 labels"),
    "labels": (lambda folder, n: dissection(folder, 2000, n), 10_000, "labels, evaluate of 2000 directions"),
}


def rows(folder: Path) -> Iterator[Row]:
    for name, (_, full, what) in CASES.items():
        (t, m), (s, n) = (apart(name, count, folder / f"{name} {count}") for count in (full, full // 10))
        yield Row(
            f"time for one of {full} {what}", f"one of {full // 10}", t / s / 10, "lower", f"{t:.1f} and {s:.1f} s"
        )
        yield Row(
            f"memory for one of {full} {what}", f"one of {full // 10}", m / n / 10, "lower", f"{m:.0f} and {n:.0f} MiB"
        )


def apart(name: str, count: int, folder: Path) -> tuple[float, float]:
    """Seconds and MiB of one case in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.load", name, str(count), str(folder)]
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).stdout
    seconds, peak = said.split()[-2:]
    return float(seconds), float(peak)


def main(name: str, count: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    make, full, _ = CASES[name]
    make(folder / "warm", full // 100)()  # compiled kernels, imports
    work = make(folder / "case", count)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    start = time.process_time()
    work()
    print(time.process_time() - start, (status("VmHWM") - before) / 1024)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
