"""How often counterfactuals come true on new images: ``python -m tests.benchmarks.counterfactuals EVALUATION IMAGES``.

EVALUATION is a folder that ``evaluate`` wrote, IMAGES a folder of images (``demo/world/folders/val``). Every image is turned into its
runner-up and into another class at random; the head is run with each change.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.explain.explainer import Explainer
from extract.datasets import open_source
from extract.network import open_network
from pipeline.explain_inputs import open_inputs
from pipeline.explanation import make_explainer


@dataclass(frozen=True)
class Trial:
    """Of N images, (N,) each: ``flips`` the head takes the image for the target, ``flips_kept`` also with activations kept ≥ 0 (all False at a layer
    that holds values below 0), ``changed`` how many directions change (0: nothing was found), ``cost`` in spreads, ``beyond`` outside what images have, ``seconds`` it took."""

    flips: np.ndarray
    flips_kept: np.ndarray
    changed: np.ndarray
    cost: np.ndarray
    beyond: np.ndarray
    seconds: np.ndarray

    def summary(self) -> dict[str, object]:
        """Shares, and how many images take 1, 2, … changes: ``changed`` {directions: images}."""
        counts = np.bincount(self.changed)
        return {
            "images": len(self.flips),
            "flips": float(self.flips.mean()),
            "flips_kept": float(self.flips_kept.mean()),
            "both": float((self.flips & self.flips_kept).mean()),
            "beyond": float(self.beyond.mean()),
            "changed": {k: int(n) for k, n in enumerate(counts) if n},
            "median_cost": float(np.median(self.cost)),
            "median_seconds": float(np.median(self.seconds)),
        }


def runner_up(logits: np.ndarray) -> int:
    """The second largest logit's class."""
    return int(np.argsort(-logits, kind="stable")[1])


def another(seed: int) -> Callable[[np.ndarray], int]:
    """Picks, for one image after another, any class but the predicted one, by the seed."""
    generator = np.random.default_rng([seed, 0xCF])

    def pick(logits: np.ndarray) -> int:
        others = np.delete(np.arange(len(logits)), logits.argmax())
        return int(generator.choice(others))

    return pick


def try_counterfactuals(
    explainer: Explainer, images: Iterable[tuple[np.ndarray, np.ndarray]], choose: Callable[[np.ndarray], int]
) -> Trial:
    """Turn every image into the class that ``choose`` picks from its logits.

    ``images``: pairs of activations (P, C), the prefix included, and logits (K,).
    """
    rows = []
    for x, logits in images:
        target = choose(logits)
        start = time.perf_counter()
        turned = explainer.turn(x, explainer.pooled(x), target)
        took = time.perf_counter() - start
        if turned is None:
            rows.append((False, False, 0, 0.0, False, took))
            continue
        change = turned.change
        rows.append(
            (turned.flips, bool(turned.flips_kept), len(change.changed), change.cost, change.beyond, took),
        )
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Trial(*columns)


def main(evaluation: str, images: str) -> None:
    inputs = open_inputs(None, None, Path(evaluation), None)
    network = open_network(inputs.store, inputs.layer)
    explainer = make_explainer(inputs.store, inputs.layer, inputs.directions, network)
    source = open_source(f"folder:{images}")

    def activations() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(len(source)):
            pixels = network.transform(source.image(i))[None]
            yield network.backbone(pixels)[0].numpy(), network.logits(pixels)[0].numpy()

    for name, choose in (("runner-up", runner_up), ("another class", another(0))):
        found = try_counterfactuals(explainer, activations(), choose)
        sys.stdout.write(f"{name}: {json.dumps(found.summary())}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
