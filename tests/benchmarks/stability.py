"""Are directions found again? ``python -m tests.benchmarks.stability STORE --layer L [--directions I] [--fit METHOD[:NAME=VALUE,...]] [--seeds 0,1,2]
[--refits M]``.

For each seed the images are split in two halves by that seed (each with as many of every class), both are fitted, with other seeds,
and their directions compared: what detectors fire on, logits, signal vectors, matched one to one; in brackets κ, corrected for chance. *Found again*: share of
directions that at least half of the refits of their own half contain, and how many of these have a partner in the other half with a
correlation of logits above 0.9.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import click
import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluate.detector_bank import make_bank
from evaluate.stability import ALIKE, firing_iou, stability_rows
from extract.network import open_head
from fit import make_fitter
from stores.directions import Directions
from stores.readers import LayerReader, Part
from stores.similarity import logit_correlation
from stores.statistics import statistics

FITS = (
    "eddp",
    "kmeans:space=whitened",
    "kmeans",
    "nmf:negative=clip",
    "sae",
    "ica:signs=skewed",
    "pca:signs=largest",
    "neurons",
)


@dataclass(frozen=True)
class Halves:
    """One split: the row of ``stability_rows``, shares of directions found again and of these in the other half, seconds a fit."""

    row: dict[str, float]
    again: float
    kept: float
    seconds: float


@click.command()
@click.argument("store")
@click.option("--layer", default=None)
@click.option("--directions", type=int, default=64, show_default=True)
@click.option("--fit", "fits", multiple=True, metavar="METHOD[:NAME=VALUE,...]")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--refits", default=8, show_default=True)
def main(store: str, layer: str | None, directions: int, fits: tuple[str, ...], seeds: str, refits: int) -> None:
    """Fit halves of a store's images and compare their directions."""
    whole = LayerReader(store, layer)
    say = sys.stdout.write
    say(f"{whole.n_images} images, layer {whole.spec.name}, {directions} directions, splits {seeds}; mean (κ)\n\n")
    say(
        "| fit | "
        + " | ".join(ALIKE)
        + " | mutual | nearest in the same set | found again | of these in the other half | s a fit |\n"
        + "|---" * (len(ALIKE) + 6)
        + "|\n"
    )
    for text in fits or FITS:
        found = [_halves(whole, text, directions, int(seed), refits) for seed in seeds.split(",")]
        for name, some in [
            (f"{text}, seed {seed}", [one]) for seed, one in zip(seeds.split(","), found, strict=True)
        ] + [(text, found)]:
            say(_line(name, some))
        sys.stdout.flush()


def _halves(whole: LayerReader, text: str, count: int, seed: int, refits: int) -> Halves:
    method, _, settings = text.partition(":")
    pairs = dict(pair.split("=", 1) for pair in settings.split(",") if pair)
    sets: dict[str, Directions] = {}
    start = time.perf_counter()
    for i in range(2):
        reader = LayerReader(whole.store, whole.spec.name, part=Part(i, 2, seed))
        fitter = make_fitter(method, n_directions=count, settings=pairs, seed=10 * seed + i, refits=refits)
        sets[str(i)] = fitter.fit(reader, open_head(whole.store, whole.spec.name)).directions_
    seconds = (time.perf_counter() - start) / 2
    bank = make_bank(sets, whole)
    moments = statistics(whole)
    (row,) = stability_rows(sets, moments, firing_iou(whole, bank), bank.slices)
    alike = np.abs(logit_correlation(sets["0"].filters, sets["1"].filters, moments))
    pairs = linear_sum_assignment(alike, maximize=True)
    partner = [np.full(each.count, np.nan) for each in sets.values()]
    for values, side in zip(partner, pairs, strict=True):
        values[side] = alike[pairs]
    again = [np.zeros(d.count) if d.found_again is None else d.found_again for d in sets.values()]
    known, found = np.concatenate(again) >= 0.5, np.concatenate(partner) > 0.9
    return Halves(row, float(known.mean()), float(found[known].mean()) if known.any() else float("nan"), seconds)


def _line(name: str, found: list[Halves]) -> str:
    def mean(key: str) -> float:
        # κ is None where directions of a set are alike without exception, as with both signs of each
        return float(np.mean([np.nan if (value := one.row[key]) is None else value for one in found]))

    cells = [f"{mean(measure):.3f} ({mean(f'{measure}_kappa'):.2f})" for measure in ALIKE]
    cells += [f"{mean('mutual'):.2f}", f"{(mean('nearest_first') + mean('nearest_second')) / 2:.2f}"]
    cells += [f"{np.mean([one.again for one in found]):.2f}", f"{np.mean([one.kept for one in found]):.2f}"]
    cells.append(f"{np.mean([one.seconds for one in found]):.0f}")
    return f"| {name} | " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    main()
