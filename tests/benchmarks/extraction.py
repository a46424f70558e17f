"""Extraction against the bare loop, against the loops of other projects, and its memory on ten times the images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.image_source import ImageSource
from extract.loader import Decode, decoded
from extract.memory import keep_freed_memory
from extract.models import load_model
from extract.network import capture
from extract.plan import Plan, plan_extraction
from extract.stream import extract, fill
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, in_turns

IMAGES = 1280
MODEL, LAYER = "mobilenet_v2", "features.18"
BATCH = 16
NETWORKS = [
    ("mobilenet_v2", "features.18", 640),
    ("resnet50", "layer4", 160),
    ("inception_v3", "Mixed_7c", 128),
    ("vit_b_16", "encoder.layers.encoder_layer_11", 64),
]


def rows(folder: Path) -> Iterator[Row]:
    photographs(folder / "data", IMAGES, 500, 375)
    source = open_source(folder / "data")

    def ours() -> None:
        shutil.rmtree(folder / "s.zarr", ignore_errors=True)
        extract(source, folder / "s.zarr", ExtractConfig(MODEL, (LAYER,), weights="none", batch_size=BATCH))

    def loop() -> None:
        """What anyone writes first: decode ahead, forward, keep nothing. Loading the model is on both sides."""
        model = load_model(MODEL, "none")
        batches = [list(range(i, min(i + BATCH, IMAGES))) for i in range(0, IMAGES, BATCH)]
        with torch.inference_mode():
            for batch in decoded(Decode(source, model.transform, batches), workers=0):
                model.module(batch.images)

    def loop_too() -> None:
        with keep_freed_memory():
            loop()

    what = f"extract, MobileNetV2 {LAYER}, {IMAGES} photographs"
    others = {
        "decode + forward, no store": loop,
        "the same loop, memory used again": loop_too,
        "DataLoader, hook, list, np.save (thingsvision's way)": lambda: in_a_list(source, folder / "features.npy"),
        "DataLoader, hook, float32 memmap shards (saev's way)": lambda: in_shards(source, folder),
    }
    for name, other in others.items():
        a, b = in_turns(ours, other, repeats=2)
        yield Row(what, name, b / a, "higher", f"{IMAGES / a:.0f} and {IMAGES / b:.0f} images/s")
    yield from rates(source, folder)
    yield from memory(folder)


def rates(source: ImageSource, folder: Path) -> Iterator[Row]:
    """Decoding, forward pass and store against decoding and forward pass, once the network is loaded and checked.

    What a run needs before its first image is a row of its own: it matters for a few hundred images, not for a million.
    """
    for model, layer, images in NETWORKS:
        start = time.perf_counter()
        config = ExtractConfig(model, (layer,), weights="none", batch_size=BATCH, limit=images)
        plan = plan_extraction(source, config)
        assert plan.store.attributes
        prepared = time.perf_counter() - start
        out = folder / "rate.zarr"

        def ours(plan: Plan = plan, out: Path = out) -> None:
            with closing(StoreWriter.open(out, plan.store, shard=None, overwrite=True)) as writer:
                fill(plan, writer)

        def loop(plan: Plan = plan, images: int = images) -> None:
            batches = [list(range(i, min(i + BATCH, images))) for i in range(0, images, BATCH)]
            with torch.inference_mode(), keep_freed_memory():
                for batch in decoded(Decode(source, plan.first.transform, batches), workers=0):
                    plan.first.module(batch.images)

        a, b = in_turns(ours, loop, repeats=2)
        measured = (
            f"{images / a:.1f} and {images / b:.1f} images/s; {plan.inference}; {prepared:.1f} s before the first image"
        )
        yield Row(
            f"extract, {model} {layer}, {images} photographs",
            "decode + forward, memory used again",
            b / a,
            "higher",
            measured,
        )


def photographs(folder: Path, count: int, width: int, height: int) -> None:
    """JPEG files of smooth colours under noise: as large as ImageNet's (some 100 KB at 500 x 375), and as costly to decode."""
    g = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = Image.fromarray(g.integers(0, 256, (9, 9, 3), np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        grain = g.integers(-32, 33, (height, width, 1), np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


class Images(Dataset[torch.Tensor]):
    """Any project's image dataset."""

    def __init__(self, source: ImageSource, transform: object) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.source.path(i)).convert("RGB"))  # type: ignore[operator]


def in_a_list(source: ImageSource, out: Path) -> None:
    """As thingsvision documents it: ``extract_features`` over a DataLoader gives one array in memory, then it is saved.

    Rebuilt from its README: it cannot be installed beside this project's torch.
    """
    model = load_model(MODEL, "none")
    taken: list[np.ndarray] = []
    hook = model.module.get_submodule(LAYER).register_forward_hook(
        lambda _m, _i, output: taken.append(output.detach().clone().cpu().numpy())
    )
    with torch.no_grad():
        for batch in DataLoader(Images(source, model.transform), batch_size=BATCH):  # type: ignore[arg-type]
            model.module(batch)
    hook.remove()
    np.save(out, np.concatenate(taken))


def in_shards(source: ImageSource, folder: Path) -> None:
    """As saev's protocol says: shards ``actsNNNNNN.bin`` of float32 (images, layers, positions, channels), memory-mapped.

    Rebuilt from its documentation (it takes vision transformers only), with a worker process that decodes.
    """
    plan = plan_extraction(source, ExtractConfig(MODEL, (LAYER,), weights="none"))
    spec, per_shard = plan.specs[0], 256
    loader = DataLoader(
        Images(source, plan.first.transform), batch_size=BATCH, num_workers=1, multiprocessing_context="spawn"
    )  # type: ignore[arg-type]
    done, shard = 0, None
    with torch.inference_mode(), capture(plan.first.module, {LAYER: plan.first.layout}) as taken:
        for batch in loader:
            if shard is None or done % per_shard == 0:
                shape = (min(per_shard, len(source) - done), 1, spec.positions, spec.channels)
                shard = np.memmap(folder / f"acts{done // per_shard:06d}.bin", np.float32, "w+", shape=shape)
            plan.first.module(batch)
            at = done % per_shard
            shard[at : at + len(batch), 0] = taken[LAYER].numpy()
            done += len(batch)
            if done % per_shard == 0 or done == len(source):
                shard.flush()


class Wide(torch.nn.Module):
    """Cheap to run, and 49 positions of 1024 channels to store."""

    input_size = (28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 1024, 4, stride=4)
        self.fc = torch.nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def memory(folder: Path) -> Iterator[Row]:
    """Peak memory of the whole command on 1000 and on 10 000 images."""
    peaks = {}
    for count in (1000, 10_000):
        photographs(folder / f"{count}", count, 64, 64)
        out = folder / f"{count}.zarr"
        command = [
            sys.executable, "-m", "pipeline.main", "extract", "--model", f"{__name__}:Wide", "--layer", "features",
            "--data", folder / f"{count}", "--out", out, "--quiet", "--json",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        peaks[count] = int(
            (out.parent / f"{out.name}.run.json").read_text().split('"peak_memory_mib": ')[1].split(",")[0]
        )
    ratio = peaks[10_000] / peaks[1000]
    yield Row(
        "peak memory, 10 000 images (1 GB)", "1000 images", ratio, "lower", f"{peaks[10_000]} and {peaks[1000]} MiB"
    )
