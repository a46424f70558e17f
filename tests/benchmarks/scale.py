"""What two runs at ImageNet scale would take, from rates measured on this machine: ``python -m tests.benchmarks.scale``.

Bytes and memory follow from shapes. Hours are rates times sizes: each rate is measured here on a part of the work
(generated photographs, random activations of the true width) and listed with what it was measured on. Nothing else is
assumed; disks and networks slower than the arithmetic are not seen. On a machine with a GPU all of it runs there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from evaluate.metrics import choose_labels
from evaluate.parallel import cores
from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.plan import Forecast
from extract.stream import extract
from fit.clustering import spherical_kmeans
from fit.config import EDDPConfig
from fit.losses import RowWeights, column_gradient, streamed_sums
from fit.whiten import whiten_store, whitening
from stores.progress import readable
from stores.readers import LayerReader
from stores.statistics import compute
from tests.benchmarks.dissection import POSITIVE, dissector
from tests.benchmarks.extraction import photographs
from tests.benchmarks.fitting import fit_like

BRODEN = 63_305  # images of Broden, by its index
DIRECTIONS = 500  # as in the paper
SAMPLE = 65_536  # rows on which a step is measured


@dataclass(frozen=True)
class Case:
    """A network and a dataset in full size; ``photograph``: width and height of its pictures."""

    name: str
    model: str
    layer: str
    images: int
    positions: int
    channels: int
    classes: int
    photograph: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.images * self.positions


CASES = (
    Case("ResNet18, Places365 (train, small)", "resnet18", "layer4", 1_803_460, 49, 512, 365, (256, 256)),
    Case("Inception-v3, ImageNet (train)", "inception_v3", "Mixed_7c", 1_281_167, 64, 2048, 1000, (500, 375)),
)


@dataclass(frozen=True)
class Rates:
    """Seconds: an image of extraction, a position of the two passes that whiten, k-means and a step of the fit, labelling
    an image."""

    image: float
    row: float
    start: float
    step: float
    label: float


def seconds(work: object) -> float:
    """Of a call, after one to warm up."""
    assert callable(work)
    work()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(case: Case, folder: Path, device: str) -> Rates:
    config = EDDPConfig(n_directions=DIRECTIONS)
    count = 4096 if device == "cuda" else 192
    photographs(folder / case.model, count, *case.photograph)
    found: list[float] = []

    def announce(forecast: Forecast) -> None:
        if forecast.rate:
            found.append(forecast.rate)

    store = folder / f"{case.model}.zarr"
    begun = time.perf_counter()
    extract(
        open_source(folder / case.model),
        store,
        ExtractConfig(case.model, (case.layer,), weights="none", device=device),
        announce=announce,
    )
    image = 1 / found[-1] if found else (time.perf_counter() - begun) / count
    reader = LayerReader(store)
    assert (reader.positions, reader.channels) == (case.positions, case.channels)
    moments = compute(reader, device=device)
    rank = max(64, DIRECTIONS)
    transform = whitening(moments, rank=min(rank, reader.n_rows - 1))
    both = seconds(lambda: compute(reader, device=device)) + seconds(
        lambda: whiten_store(reader, transform, replace(config, device=device), max_rows=config.max_rows)
    )
    y, w, b = (t.to(device) for t in fit_like(SAMPLE, rank, DIRECTIONS))

    def step() -> None:
        sums = streamed_sums(y, w, b, RowWeights(1, 1), signals="pooled")
        slope = torch.where(torch.arange(DIRECTIONS, device=device) < DIRECTIONS // 10, 1.0, 0.0)
        column_gradient(y, w, b, slope * sums.column)

    clustering = seconds(lambda: spherical_kmeans(y[:16_384], DIRECTIONS, seed=0, iterations=5, restarts=1))
    points = DIRECTIONS * config.kmeans_points
    start = clustering * (points / 16_384) * (config.kmeans_iterations / 5) * config.restarts * 3
    return Rates(image, both / reader.n_rows, start, seconds(step) / SAMPLE, labelling(folder))


def labelling(folder: Path) -> float:
    """Seconds an image of both passes over labels, 500 detectors and 300 labels at 112 × 112 points."""
    ours = dissector(folder, 64, POSITIVE["0.5 % positive"])
    label_of = choose_labels(ours.count())
    return (seconds(ours.count) + seconds(lambda: ours.second(label_of))) / 64


def table(case: Case, rates: Rates) -> Iterator[str]:
    config = EDDPConfig(n_directions=DIRECTIONS)
    rank, fitted = max(64, DIRECTIONS), min(case.rows, config.max_rows)
    store = case.rows * case.channels * 2 + case.images * 4 * case.classes
    labels = BRODEN * case.positions * case.channels * 2
    yield f"### {case.name}"
    yield ""
    yield (
        f"{whole(case.images)} images × {case.positions} positions × {case.channels} channels, float16; {DIRECTIONS} directions in {rank} "
        f"whitened coordinates; {whole(BRODEN)} images of Broden."
    )
    yield ""
    yield "| stage | reads | writes | memory | hours here |"
    yield "|---|---|---|---|---|"
    yield f"| extract | the images | {readable(store)} | a few chunks | {hours(case.images * rates.image)} |"
    pooled = case.images * rank * 4
    yield (
        f"| fit: covariance, whitening | {readable(2 * store)} (twice) | {readable(case.channels**2 * 8)} | "
        f"{readable(fitted * rank * 4 + pooled)} | {hours(case.rows * rates.row)} |"
    )
    yield f"| fit: start | memory | – | {readable(DIRECTIONS * config.kmeans_points * rank * 4)} more | {hours(rates.start)} |"
    yield (
        f"| fit: {config.refine_steps} steps on {fitted / 1e6:.1f} million positions | memory | checkpoint, "
        f"{readable(3 * DIRECTIONS * rank * 4)} | – | {hours(config.refine_steps * fitted * rates.step)} |"
    )
    yield f"| evaluate: Broden through the network | Broden | {readable(labels)} | a few chunks | {hours(BRODEN * rates.image)} |"
    yield f"| evaluate: labels | {readable(2 * labels)} (twice) | tables | below 1 GB | {hours(BRODEN * rates.label)} |"
    yield ""
    yield (
        f"Rates: {1 / rates.image:.1f} images/s through the network; {1 / rates.row / 1e6:.3f} million positions/s through covariance and "
        f"whitening; {1 / rates.step / 1e6:.3f} million positions/s a step; {1000 * rates.label:.1f} ms an image for labels."
    )
    yield ""


def whole(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def hours(value: float) -> str:
    return f"{value / 3600:.3g}" if value >= 36_000 else f"{value / 3600:.2g}"


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a processor")
    return f"{cores()} cores of {model}, {torch.get_num_threads()} threads"


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sys.stdout.write(f"Measured on {machine(device)}\n\n")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="eddp-scale-") as folder:
            rates = measure(case, Path(folder), device)
        for line in table(case, rates):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
