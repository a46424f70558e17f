"""Is the truth recovered? ``python -m tests.benchmarks.recovery [--data 3|16|16x2|16x3|64x1|64|realistic] [--seeds N] [--fit METHOD[:NAME=VALUE,...]]``.

One line a fit, over synthetic stores of several seeds, none left out: IoU of each concept's detector, cosine of its signal
vector with the truth, mean cosine of its filter with the ideal one, share of distinct matches (``evaluate.ground_truth``), RMSE of
signal values. Without ``--fit``: EDDP by its defaults, its ablations, and every other method.

What the others are granted: a detector without threshold takes the one of best IoU with its concept, methods that model all
that varies (PCA, ICA, NMF, SAE) get a direction for each distractor too, PCA and ICA both signs of each.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from evaluate.ground_truth import cosines, distinct_matches, ideal_filters
from extract.network import open_head
from fit import SUPERVISED, make_fitter
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.attachments import Truth, read_truth
from stores.directions import Directions
from stores.errors import EDDPError
from stores.readers import LayerReader

DATA = {
    "3": (SyntheticConfig(), 20),
    "16": (SyntheticConfig(channels=64, concepts=16, distractors=16, images=6000), 4),
    "16x2": (SyntheticConfig(channels=64, concepts=16, distractors=4, images=4000, per_position=2, noise=0.1), 3),
    "16x3": (SyntheticConfig(channels=64, concepts=16, distractors=4, images=4000, per_position=3, noise=0.1), 3),
    "64x1": (SyntheticConfig(channels=256, concepts=64, distractors=32, images=30000, noise=0.1), 3),
    "64": (
        SyntheticConfig(
            channels=256,
            concepts=64,
            distractors=32,
            images=12000,
            positions=4,
            per_position=2,
            noise=0.5,
            imbalance=10,
        ),
        2,
    ),
    "realistic": (
        SyntheticConfig(
            channels=256,
            concepts=64,
            distractors=4,
            images=12000,
            positions=5,
            per_position=3,
            noise=0.1,
            zipf=1,
            hierarchy=3,
            correlation=0.3,
        ),
        3,
    ),
}
FITS = (
    "eddp",
    "eddp:whiten=false",
    "eddp:lambda_uncertainty=0",
    "eddp:signals=positives",
    "eddp:signals=free",
    "eddp:restarts=1",
    "eddp:regime=sharp",
    "eddp:regime=soft",
    "kmeans:space=whitened",
    "kmeans",
    "neurons",
    "pca",
    "ica",
    "nmf:negative=clip",
    "sae",
    "sae:kind=l1",
    "uibe:preset=synthetic",
    "cbe:preset=synthetic",
    "eddp@paper:preset=synthetic",
    "pattern-cav",
    "probe",
)
DISTRACTORS_TOO = {"pca": 2, "ica": 2, "nmf": 1, "sae": 1}


@dataclass(frozen=True)
class Found:
    """Per concept."""

    iou: np.ndarray
    cos: np.ndarray
    filter_cos: np.ndarray
    distinct: float
    rmse: float


@click.command()
@click.option("--data", type=click.Choice(list(DATA)), default="3", show_default=True, help="How many concepts.")
@click.option("--seeds", type=int, default=None, help="How many stores.")
@click.option("--fit", "fits", multiple=True, metavar="METHOD[@STEPS][:NAME=VALUE,...]")
@click.option("--each", is_flag=True, help="A line a seed, too.")
def main(data: str, seeds: int | None, fits: tuple[str, ...], each: bool) -> None:
    """Fit synthetic stores of many seeds and hold them against their truth."""
    config, count = DATA[data]
    say = sys.stdout.write
    say(
        f"{config.concepts} concepts, {config.distractors} distractors, {config.channels} channels, {seeds or count} seeds\n\n"
    )
    say(
        "| fit | worst IoU | mean IoU | worst cosine | mean cosine | filters | distinct | largest RMSE | s |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory(prefix="eddp-recovery-") as folder:
        stores = []
        for seed in range(seeds or count):
            path = Path(folder) / f"{seed}.zarr"
            make_synthetic(path, replace(config, seed=seed))
            reader = LayerReader(path)
            stores.append((reader, read_truth(reader.store.path)))
        for text in fits or FITS:
            begun, results = time.perf_counter(), []
            try:
                for seed, (reader, truth) in enumerate(stores):
                    results.append(against(fitted(text, reader, config), reader, truth))
                    if each:
                        say(line(f"{text}, seed {seed}", results[-1:], 0))
            except EDDPError as error:
                say(f"| {text} | {error} |\n")
                continue
            say(line(text, results, (time.perf_counter() - begun) / len(stores)))
            sys.stdout.flush()


def line(name: str, results: list[Found], seconds: float) -> str:
    iou, cos, filters = (np.concatenate([getattr(r, what) for r in results]) for what in ("iou", "cos", "filter_cos"))
    distinct, rmse = np.mean([r.distinct for r in results]), max(r.rmse for r in results)
    return (
        f"| {name} | {iou.min():.3f} | {iou.mean():.3f} | {cos.min():.3f} | {cos.mean():.3f} | {filters.mean():.3f} | "
        f"{distinct:.3f} | {rmse:.3f} | {seconds:.1f} |\n"
    )


def fitted(text: str, reader: LayerReader, config: SyntheticConfig) -> Directions:
    """Directions by ``method@steps:name=value,...``."""
    what, _, settings = text.partition(":")
    method, _, steps = what.partition("@")
    count: int | None = config.concepts
    if method in DISTRACTORS_TOO:
        count = DISTRACTORS_TOO[method] * (config.concepts + config.distractors)
    if method in SUPERVISED:
        count = None
    pairs = dict(pair.split("=", 1) for pair in settings.split(",") if pair)
    more = {"steps": steps} if steps else {}
    fitter = make_fitter(method, n_directions=count, settings=pairs, **more)  # type: ignore[arg-type]
    return fitter.fit(reader, open_head(reader.store, reader.spec.name)).directions_


def against(directions: Directions, reader: LayerReader, truth: Truth) -> Found:
    """Match detectors with concepts by IoU; those without thresholds with the best threshold for the concept."""
    x = np.concatenate([block.reshape(-1, reader.channels) for _, block in reader.blocks()]).astype(np.float32)
    z, present = directions.logits(x), truth.present
    if directions.thresholds is not None:
        on = (z > 0).astype(np.float64)
        both = present.T.astype(np.float64) @ on
        iou = both / np.maximum(present.sum(0)[:, None] + on.sum(0)[None] - both, 1)
    else:
        iou = np.stack([best_iou(z[:, i], present) for i in range(z.shape[1])], 1)
    concepts, match = linear_sum_assignment(-iou)
    missing = present.shape[1] - len(concepts)  # fewer directions than concepts: those were not found
    cos = cosines(directions.signals[:, match], truth.signals[:, concepts])
    filter_cos = cosines(directions.filters[:, match], ideal_filters(x, truth.values)[:, concepts])
    wanted = truth.values[:, concepts] - truth.values[:, concepts].mean(0)
    off = directions.signal_values(x)[:, match] - wanted
    return Found(
        np.append(iou[concepts, match], np.zeros(missing)),
        np.append(cos, np.zeros(missing)),
        np.append(filter_cos, np.zeros(missing)),
        distinct_matches(iou),
        float(np.sqrt(np.mean(off**2))),
    )


def best_iou(z: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(I*,) the best IoU of ``z > t`` with each concept over all t."""
    order = np.argsort(-z, kind="stable")
    hits = np.cumsum(present[order], 0)
    found = np.arange(1, len(z) + 1)[:, None]
    best: np.ndarray = (hits / (present.sum(0)[None] + found - hits)).max(0)
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)  # the problems are small: threads would only wait for each other
    main()
