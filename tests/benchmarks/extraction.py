"""Extraction against the same decode and forward loop without a store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from extract.decode import Decode, decoded
from extract.images import open_source
from extract.stream import ExtractConfig, default_batch_size, extract
from extract.zoo import load_model
from tests.benchmarks.measure import Row, in_turns

IMAGES = 192


def rows(folder: Path) -> Iterator[Row]:
    g = np.random.default_rng(0)
    (folder / "data").mkdir()
    for i in range(IMAGES):
        small = Image.fromarray(g.integers(0, 256, (9, 9, 3), np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / "data" / f"{i:04d}.jpg", quality=90)
    source = open_source(folder / "data")
    loaded = load_model("mobilenet_v2", "none")

    def loop() -> None:
        """What anyone writes first: decode ahead, forward, keep nothing. Loading the model is on both sides."""
        model = load_model("mobilenet_v2", "none")
        size = default_batch_size("cpu")
        batches = [list(range(i, min(i + size, IMAGES))) for i in range(0, IMAGES, size)]
        with torch.inference_mode():
            for batch in decoded(Decode(source, model.transform, batches), workers=0):
                model.module(batch.images)

    def ours() -> None:
        shutil.rmtree(folder / "s.zarr", ignore_errors=True)
        extract(source, folder / "s.zarr", ExtractConfig("mobilenet_v2", ("features.18",), weights="none"))

    assert loaded.module is not None
    a, b = in_turns(ours, loop, repeats=3)
    yield Row(
        "extract, MobileNetV2 features.18", "decode + forward, no store", b / a, "higher", f"{IMAGES / a:.0f} images/s"
    )
