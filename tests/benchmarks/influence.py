"""Influence with null directions, all at once, against one by one as the formulas read; memory over the number of images."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from evaluate.detector_bank import make_bank
from evaluate.influence.influence_study import InfluenceConfig, effect_of, measure_influence
from evaluate.influence.permutation_nulls import permuted_labels
from evaluate.influence.sampling import balanced_samples
from stores.directions import Directions
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row

IMAGES, POSITIONS, CHANNELS, CLASSES, DIRECTIONS = 1000, 49, 256, 100, 256
CONFIG = InfluenceConfig(images=IMAGES, nulls=100)  # the defaults
SAMPLE = 12  # null directions of which the loop's time is taken


def world(path: Path, images: int = IMAGES) -> tuple[ActivationStore, Directions]:
    """A store of positive activations with a pooled-affine head, and directions on it."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, CHANNELS, generator=g) / CHANNELS**0.5
    plan = StorePlan(
        layers=[LayerSpec("conv", (7, 7), CHANNELS)], names=[f"{k}.jpg" for k in range(images)], n_classes=CLASSES,
        provenance={"model": "bench", "weights": "none"}, dtype="float16", chunk_images=100,
        heads={"conv": (weight.numpy(), np.zeros(CLASSES, np.float32))},
    )  # fmt: skip
    writer = StoreWriter.open(path, plan)
    for k in writer.missing():
        part = slice(k * 100, min(images, (k + 1) * 100))
        n = part.stop - part.start
        x = torch.randn(n, POSITIONS, CHANNELS, generator=g).relu_()
        writer.commit(
            k, names=plan.names[part], labels=np.zeros(n, np.int64), valid=np.ones(n, bool),
            logits=(x.mean(1) @ weight.T * 5).numpy(), activations={"conv": x.numpy().astype(np.float16)},
        )  # fmt: skip
    writer.seal()
    writer.close()
    w = F.normalize(torch.randn(CHANNELS, DIRECTIONS, generator=g), dim=0).numpy()
    b = np.full(DIRECTIONS, 0.8, np.float32)
    return ActivationStore.open(path), Directions(w, w, np.zeros(CHANNELS, np.float32), b, "bench", "conv")


def one_null(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A logistic classifier on one permutation, and the signal vector over its positives."""
    model = torch.nn.Linear(x.shape[1], 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=CONFIG.learning_rate)
    for _ in range(CONFIG.null_epochs):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(model(x)[:, 0], y).backward()
        optimiser.step()
    with torch.no_grad():
        z = model(x)[:, 0]
        on = z > 0
        s = ((x[on] - x[on].mean(0)) * (z[on] - z[on].mean())[:, None]).mean(0) / z[on].var(unbiased=False)
        return F.normalize(s, dim=0)


def one_effect(x: torch.Tensor, weight: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    """Score of one direction on all classes: every position moved, the head run again."""
    before = torch.softmax(x.mean(1) @ weight.T, 1)
    after = torch.softmax((x + alpha * v).mean(1) @ weight.T, 1)
    return 2 * (after >= before).float().mean(0) - 1


def loop_seconds(store: ActivationStore, directions: Directions) -> float:
    """What the loop would take for everything, from a few null directions: it does the same again for each."""
    reader = LayerReader(store)
    bank = make_bank({"d": directions}, reader)
    samples = balanced_samples(reader, bank, positions=CONFIG.null_positions)
    rows = torch.from_numpy(reader.rows(samples[0].rows).astype(np.float32))
    y = torch.from_numpy(permuted_labels(len(rows), CONFIG.training, 0))
    x = torch.from_numpy(reader.images(reader.image_indices).astype(np.float32))
    head = store.affine_head("conv")
    assert head
    weight = torch.from_numpy(head[0])
    one_null(rows, y[:, 0])
    start = time.perf_counter()
    for k in range(SAMPLE):
        v = one_null(rows, y[:, k])
        for alpha in CONFIG.alphas:
            for _role in ("signal", "filter"):
                one_effect(x, weight, v, alpha)
    return (time.perf_counter() - start) / SAMPLE * DIRECTIONS * (CONFIG.training.count + 1)


def peak_apart(images: int, folder: Path) -> float:
    """MiB at the peak of a study on a store of so many images, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.influence", str(images), str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def rows(folder: Path) -> Iterator[Row]:
    store, directions = world(folder / "s.zarr")
    effect_of(store, "conv", CONFIG, DIRECTIONS)
    start = time.perf_counter()
    measure_influence(store, "conv", {"d": directions}, CONFIG)
    ours = time.perf_counter() - start
    theirs = loop_seconds(store, directions)
    what = f"influence, {DIRECTIONS} directions × {CLASSES} classes × {CONFIG.nulls} null directions, 3 steps, {IMAGES} images"
    yield Row(what, f"one by one ({SAMPLE} measured)", theirs / ours, "higher", f"{ours:.0f} s")
    a, b = (peak_apart(n, folder / f"{n}.zarr") for n in (10_000, 1000))
    yield Row("peak memory of a study, 10 000 images", "1000 images", a / b, "lower", f"{a:.0f} and {b:.0f} MiB")


if __name__ == "__main__":
    made, found = world(Path(sys.argv[2]), int(sys.argv[1]))
    few = InfluenceConfig(nulls=10, null_positions=400, null_epochs=5)
    measure_influence(made, "conv", {"d": found}, few)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # noqa: T201
