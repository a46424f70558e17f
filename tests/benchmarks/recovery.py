"""Is the truth recovered? ``python -m tests.benchmarks.recovery [--seeds 20] [--concepts 3 ...] [--set NAME=VALUE ...]``.

One line a seed, none left out: worst IoU, worst cosine of the signal vectors with the truth, RMSE of signal values.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import torch

from evaluate.truth import against_truth, read_truth
from extract.head import open_head
from fit import METHODS, make_fitter
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.readers import LayerReader


@click.command()
@click.option("--seeds", default=20, show_default=True)
@click.option("--concepts", default=3, show_default=True)
@click.option("--distractors", default=2, show_default=True)
@click.option("--channels", default=16, show_default=True)
@click.option("--images", default=3000, show_default=True)
@click.option("--method", type=click.Choice(sorted(METHODS)), default="eddp", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE")
def main(
    seeds: int, concepts: int, distractors: int, channels: int, images: int, method: str, settings: tuple[str, ...]
) -> None:
    """Fit synthetic stores of many seeds and hold them against their truth."""
    torch.set_num_threads(1)  # the problems are small: threads would only wait for each other
    chosen = dict(text.split("=", 1) for text in settings)
    worst: list[tuple[float, float, float]] = []
    sys.stdout.write("| seed | worst IoU | worst cosine | RMSE |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory(prefix="eddp-recovery-") as folder:
        for seed in range(seeds):
            path = Path(folder) / f"{seed}.zarr"
            config = SyntheticConfig(
                channels=channels, concepts=concepts, distractors=distractors, images=images, seed=seed
            )
            make_synthetic(path, config)
            reader = LayerReader(path)
            fitter = make_fitter(method, n_directions=concepts, settings=chosen)
            directions = fitter.fit(reader, open_head(reader.store, reader.spec.name)).directions
            found = against_truth(directions, reader, read_truth(reader))
            worst.append((min(found["iou"]), min(found["cos"]), found["rmse"]))
            sys.stdout.write("| {} | {:.3f} | {:.3f} | {:.3f} |\n".format(seed, *worst[-1]))
    iou, cosine, rmse = zip(*worst, strict=True)
    sys.stdout.write(f"| all | {min(iou):.3f} | {min(cosine):.3f} | {max(rmse):.3f} |\n")


if __name__ == "__main__":
    main()
