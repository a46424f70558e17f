"""How often counterfactuals come true: over many images, the head run with each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from evaluate.explain.explainer import Explainer


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
