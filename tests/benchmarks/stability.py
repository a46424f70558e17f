"""Are directions found again? ``python -m tests.benchmarks.stability STORE --layer L [--directions I] [--fit METHOD[:NAME=VALUE,...]] [--seeds 0,1,2]``.

For each seed the images are split in two halves by that seed (each with as many of every class), both are fitted, with other seeds,
and their directions compared: what detectors fire on, logits, signal vectors, matched one to one; in brackets κ, corrected for chance.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import click
import numpy as np

from evaluate.detectors import make_bank
from evaluate.stability import ALIKE, firing_iou, stability_rows
from extract.head import open_head
from fit import make_fitter
from stores.directions import Directions
from stores.parts import Part
from stores.readers import LayerReader
from stores.statistics import statistics

FITS = ("eddp", "kmeans:space=whitened", "kmeans", "nmf:negative=clip", "sae", "ica", "pca", "neurons")


@dataclass(frozen=True)
class Halves:
    """One split: the row of ``stability_rows``, and seconds a fit."""

    row: dict[str, float]
    seconds: float


@click.command()
@click.argument("store")
@click.option("--layer", default=None)
@click.option("--directions", type=int, default=64, show_default=True)
@click.option("--fit", "fits", multiple=True, metavar="METHOD[:NAME=VALUE,...]")
@click.option("--seeds", default="0,1,2", show_default=True)
def main(store: str, layer: str | None, directions: int, fits: tuple[str, ...], seeds: str) -> None:
    """Fit halves of a store's images and compare their directions."""
    whole = LayerReader(store, layer)
    say = sys.stdout.write
    say(f"{whole.n_images} images, layer {whole.spec.name}, {directions} directions, splits {seeds}; mean (κ)\n\n")
    say(
        "| fit | "
        + " | ".join(ALIKE)
        + " | mutual | nearest in the same set | s a fit |\n"
        + "|---" * (len(ALIKE) + 4)
        + "|\n"
    )
    for text in fits or FITS:
        found = [_halves(whole, text, directions, int(seed)) for seed in seeds.split(",")]
        for name, some in [
            (f"{text}, seed {seed}", [one]) for seed, one in zip(seeds.split(","), found, strict=True)
        ] + [(text, found)]:
            say(_line(name, some))
        sys.stdout.flush()


def _halves(whole: LayerReader, text: str, count: int, seed: int) -> Halves:
    method, _, settings = text.partition(":")
    pairs = dict(pair.split("=", 1) for pair in settings.split(",") if pair)
    sets: dict[str, Directions] = {}
    start = time.perf_counter()
    for i in range(2):
        reader = LayerReader(whole.store, whole.spec.name, part=Part(i, 2, seed))
        fitter = make_fitter(method, n_directions=count, settings=pairs, seed=10 * seed + i)  # type: ignore[arg-type]
        sets[str(i)] = fitter.fit(reader, open_head(whole.store, whole.spec.name)).directions_
    seconds = (time.perf_counter() - start) / 2
    bank = make_bank(sets, whole)
    (row,) = stability_rows(sets, statistics(whole), firing_iou(whole, bank), bank.slices)
    return Halves(row, seconds)


def _line(name: str, found: list[Halves]) -> str:
    def mean(key: str) -> float:
        return float(np.mean([one.row[key] for one in found]))

    cells = [f"{mean(measure):.3f} ({mean(f'{measure}_kappa'):.2f})" for measure in ALIKE]
    cells += [f"{mean('mutual'):.2f}", f"{(mean('nearest_first') + mean('nearest_second')) / 2:.2f}"]
    cells.append(f"{np.mean([one.seconds for one in found]):.0f}")
    return f"| {name} | " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    main()
