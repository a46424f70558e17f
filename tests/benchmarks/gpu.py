"""Extraction on a GPU: images a second, how long it waits, and what less precision changes. Nothing where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.image_source import ImageSource
from extract.plan import plan_extraction
from extract.stream import extract
from stores.readers import LayerReader
from tests.benchmarks.extraction import photographs
from tests.benchmarks.measure import Row

IMAGES = 4096
NETWORKS = (("resnet50", "layer4"), ("inception_v3", "Mixed_7c"))


def rows(folder: Path) -> Iterator[Row]:
    if not torch.cuda.is_available():
        return
    photographs(folder / "data", IMAGES, 500, 375)
    source = open_source(folder / "data")
    for model, layer in NETWORKS:
        exact = ExtractConfig(model, (layer,), weights="none", device="cuda")
        half = ExtractConfig(model, (layer,), weights="none", device="cuda", precision="float16")
        busy, size = busy_seconds(source, exact)
        for name, config in (("float32", exact), ("float16", half)):
            begun = time.perf_counter()
            extract(source, folder / f"{model}-{name}.zarr", config)
            seconds = time.perf_counter() - begun
            peak = torch.cuda.max_memory_allocated() / 2**20
            if name == "float32":
                waiting = 1 - busy / seconds
                yield Row(
                    f"extract, {model} {layer}, {IMAGES} photographs, batches of {size}",
                    "the passes alone",
                    busy / seconds,
                    "higher",
                    f"{IMAGES / seconds:.0f} images/s, the GPU waits {100 * waiting:.0f} %, peak {peak:.0f} MiB",
                )
            else:
                yield Row(
                    f"extract, {model} {layer}, computed in float16",
                    "float32's largest value: largest difference",
                    difference(folder / f"{model}-float32.zarr", folder / f"{model}-float16.zarr"),
                    "lower",
                    f"{IMAGES / seconds:.0f} images/s",
                )


def busy_seconds(source: ImageSource, config: ExtractConfig) -> tuple[float, int]:
    """Seconds of the forward passes over all images, with nothing to wait for, and the batch size."""
    plan = plan_extraction(source, config)
    size = plan.batch_size
    images = torch.randn(size, 3, *plan.first.provenance["input_size"]).pin_memory()
    begun = 0.0
    with plan.forward() as forward:
        for turn in range(1 + -(-IMAGES // size)):
            if turn == 1:
                torch.cuda.synchronize()
                begun = time.perf_counter()
            passes = list(forward(images, {}))
        passes[-1].wait()
    return time.perf_counter() - begun, size


def difference(a: Path, b: Path) -> float:
    x, y = (LayerReader(path).images(np.arange(min(256, IMAGES))).astype(np.float32) for path in (a, b))
    return float(np.abs(x - y).max() / np.abs(x).max())
