"""Does the refinement generalise? ``python -m tests.benchmarks.heldout [STORE [--layer L] [--directions I]] [--data 3,16,16x2,16x3] [--seeds 0,1,2]``.

One half of the images is fitted; the row losses (L_s + λ_ma L_ma, with the fit's own λ_ma) are taken on the other half: of the detectors that
the refinement starts from (``refine_steps=1``), and of those that it ends with. A fit that is worse than its own start has over-fitted.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from extract.network import open_head
from fit import make_fitter
from fit.config import SHARP, SOFT
from fit.synthetic import make_synthetic
from stores.directions import Directions
from stores.readers import LayerReader, Part
from tests.benchmarks.recovery import DATA


@click.command()
@click.argument("store", required=False)
@click.option("--layer", default=None)
@click.option("--directions", type=int, default=64, show_default=True)
@click.option("--data", default="3,16,16x2,16x3", show_default=True, help="Synthetic data, where no store is given.")
@click.option("--seeds", default="0,1,2", show_default=True)
def main(store: str | None, layer: str | None, directions: int, data: str, seeds: str) -> None:
    """Compare fits with their own start on images that they did not see."""
    say = sys.stdout.write
    say("| data | seed | regime | start | fit |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in [store] if store else data.split(","):
            for seed in map(int, seeds.split(",")):
                path, count = (Path(store), directions) if store else (Path(folder) / f"{name}-{seed}.zarr", 0)
                if not store:
                    config, _ = DATA[str(name)]
                    make_synthetic(path, replace(config, seed=seed))
                    count = config.concepts
                start, end, regime = _losses(path, layer, count, seed)
                say(f"| {name} | {seed} | {regime} | {start:.3f} | {end:.3f} |{' over-fitted' * (end > start)}\n")
                sys.stdout.flush()


def _losses(path: Path, layer: str | None, count: int, seed: int) -> tuple[float, float, str]:
    """Row loss on unseen images at the start and at the end, and the regime."""
    seen, unseen = (LayerReader(path, layer, part=Part(i, 2, seed)) for i in range(2))
    x = np.concatenate([block.reshape(-1, seen.channels) for _, block in unseen.blocks()]).astype(np.float32)
    head = open_head(seen.store, seen.spec.name)
    found = []
    for settings in ({"refine_steps": "1"}, {}):
        fitter = make_fitter("eddp", n_directions=count, seed=seed, refits=0, settings=settings)
        found.append(fitter.fit(seen, head).directions_)
    regime = found[1].info["regime"]
    weight = (SOFT if regime == "soft" else SHARP)["lambda_ma"]
    return row_loss(found[0], x, weight), row_loss(found[1], x, weight), regime


def row_loss(directions: Directions, x: np.ndarray, weight: float) -> float:
    """``L_s + λ_ma L_ma`` of rows (n, C), as ``fit.losses`` defines them, in float64."""
    log_y = -np.logaddexp2(0, -directions.logits(x).astype(np.float64) / np.log(2))
    y = np.exp2(log_y)
    q = y / y.sum(1, keepdims=True)
    sparsity = -(q * np.log2(np.maximum(q, 1e-300))).sum(1)
    return float((sparsity - weight * (q * log_y).sum(1)).mean())


if __name__ == "__main__":
    main()
