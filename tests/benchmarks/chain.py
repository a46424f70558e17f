"""The whole chain on a GPU: images, activations, directions, tables, as commands; then a part of it beside the processor.

Seconds, the share of the time in which the GPU worked, and peak memory are those of each command's own record. ``make bench``
runs it where there is a GPU; ``python -m tests.benchmarks.chain --device cpu --images 200`` runs it anywhere, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.world import build_world
from stores.directions import Directions
from stores.readers import LayerReader
from tests.benchmarks.measure import HEAD, Row, write


@dataclass(frozen=True)
class Chain:
    """How much of it. ``part``: images that the processor goes through, too."""

    device: str = "cuda"
    images: int = 20_000
    size: int = 224
    model: str = "resnet50"
    layer: str = "layer4"
    directions: int = 256
    part: int = 256
    few: int = 16

    @property
    def network(self) -> tuple[object, ...]:
        return ("--model", self.model, "--weights", "none", "--layer", self.layer)


def rows(folder: Path) -> Iterator[Row]:
    if torch.cuda.is_available():
        yield from measured(folder, Chain())


def measured(folder: Path, chain: Chain) -> Iterator[Row]:
    world = folder / "world"
    build_world(world, images=chain.images, size=chain.size)
    name = f"{chain.images} drawn pictures, {chain.model} {chain.layer}"
    whole = stages(folder / "whole", world, chain, chain.device, chain.directions)
    for stage, record in whole.items():
        seconds = record["seconds"]
        busy = record.get("gpu_busy")
        memory = f"peak {record['peak_memory_mib']} MiB, on the GPU {record.get('peak_gpu_memory_mib')} MiB"
        rate = f", {chain.images / seconds:.0f} images/s" if stage == "extract" else ""
        yield Row(
            f"{stage}, {name}",
            "the GPU working",
            float("nan") if busy is None else busy,
            "higher",
            f"{seconds:.0f} s{rate}; {memory}",
        )
    limit = ("--limit", chain.part)
    for part, device in (("here", "cpu"), ("there", chain.device)):
        stages(folder / part, world, chain, device, chain.few, *limit)
    yield from compared(folder / "here", folder / "there", chain)


def stages(
    folder: Path, world: Path, chain: Chain, device: str, directions: int, *limit: object
) -> dict[str, dict[str, Any]]:
    """Run the three commands; give their records."""
    folder.mkdir()
    store, found, out = folder / "acts.zarr", folder / "d.safetensors", folder / "evaluation"
    on = ("--device", device, "--quiet")
    exact = ("--dtype", "float32") if limit else ()
    command("extract", *chain.network, "--data", world, "--out", store, *exact, *limit, *on)
    command("fit", "--store", store, "--directions", directions, "--out", found, *on)
    command("evaluate", "--store", store, "--directions", found, "--broden", world, "--influence", "--out", out, *on)
    records = {"extract": folder / "acts.zarr.run.json", "fit": folder / "d.run.json", "evaluate": out / "run.json"}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in records.items()}


def command(*words: object) -> None:
    ended = subprocess.run([sys.executable, "-m", "pipeline.main", *map(str, words)], stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise RuntimeError(f"{words[0]} ended with {ended.returncode}: {' '.join(map(str, words))}")


def compared(here: Path, there: Path, chain: Chain) -> Iterator[Row]:
    """What the processor and the GPU make of the same images."""
    images = f"{chain.part} images, float32"
    a, b = (LayerReader(folder / "acts.zarr").images(range(chain.part)) for folder in (here, there))
    yield Row(
        f"activations of {images}", "their largest value: largest difference to the CPU's",
        float(np.abs(a - b).max() / np.abs(a).max()), "lower", f"largest value {np.abs(a).max():.3g}",
    )  # fmt: skip
    one, two = (Directions.load(folder / "d.safetensors") for folder in (here, there))
    cosines = np.sort(np.abs(unit(one.filters).T @ unit(two.filters)).max(1))
    yield Row(
        f"{chain.few} filters fitted on {images}", "the CPU's nearest: cosine, median", float(np.median(cosines)), "higher",
        f"smallest {cosines[0]:.3f}; k-means draws and rounds otherwise there",
    )  # fmt: skip
    summaries = [json.loads((folder / "evaluation" / "summary.json").read_bytes()) for folder in (here, there)]
    scores = [summary["directions"]["d"]["s2"] for summary in summaries]
    yield Row(
        f"S2 of these, {images}", "the CPU's", scores[1] / scores[0], "higher", f"{scores[1]:.3f} and {scores[0]:.3f}"
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in Chain().__dict__.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    chain = Chain(**vars(parser.parse_args()))
    sys.stdout.write(HEAD)
    with tempfile.TemporaryDirectory(prefix="eddp-chain-") as folder:
        write(measured(Path(folder), chain), sys.stdout)


if __name__ == "__main__":
    main()
