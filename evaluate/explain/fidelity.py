"""Surrogate fidelity: how well a set's contributions rebuild the network's logits, compared with sets of random concepts (SURF, Kumar & Ahuja 2025).

Behind pooling and an affine map, an image's logits are base + contributions + residual (``evaluate.explain.contributions``). Base and
contributions are the surrogate: what the directions say of the logits. Over images n and classes k:

    MAE = mean_nk |rebuilt_nk − logit_nk|
    EMD = mean_k ∫ |F_k(t) − G_k(t)| dt     F_k, G_k: distributions over the images of class k's logit, the network's and the rebuilt one

In one dimension the earth mover's distance is the mean difference of the sorted values. It ignores which image has which logit, so it is
never above the MAE. (SURF leaves the distance's ground space open to logits; one per class, averaged, is our choice.)

Random concepts [ours]: as many normal filters, with their Haufe patterns ``cov(x) w`` as signal vectors, read in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.explain.values import pooled_images, readout
from stores.directions import Directions
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.statistics import statistics

IMAGES = 2000  # drawn from the store, at most: over all classes, the MAE of more differs by about a hundredth
DRAWS = 39  # one more draw is within their smallest and largest with probability 38 / 40 = 95 %


@dataclass(frozen=True)
class Fidelity:
    """``own``, ``constant`` (2,) and ``random`` (draws, 2): MAE and EMD of the set, of the logits at the mean activation, of random concepts."""

    images: int
    classes: int
    own: np.ndarray
    constant: np.ndarray
    random: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """(2,) ``(b + 1) / (draws + 1)``, b draws with an error no larger than the set's."""
        found: np.ndarray = (1 + (self.random <= self.own).sum(0)) / (1 + len(self.random))
        return found

    def summary(self) -> dict[str, Any]:
        """The entry of summary.json."""

        def of(m: int) -> dict[str, float]:
            draws = self.random[:, m]
            values = {
                "value": self.own[m], "p": self.p[m], "random": draws.mean(), "random_low": draws.min(),
                "random_high": draws.max(), "constant": self.constant[m],
            }  # fmt: skip
            return {key: float(f"{value:.4g}") for key, value in values.items()}

        counts = {"images": self.images, "classes": self.classes, "draws": len(self.random)}
        return {**counts, "mae": of(0), "emd": of(1)}


def surrogate_fidelity(
    reader: LayerReader,
    sets: Mapping[str, Directions],
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Fidelity]:
    """Fidelity of each set over at most 2,000 images; nothing unless the head is pooling and an affine map and the store has all positions.

    Raises NonFiniteError for a NaN or infinite activation.
    """
    head = reader.store.affine_head(reader.spec.name)
    if head is None or reader.spec.sampled:
        return {}
    parts = [(rows, mean) for rows, mean, _ in pooled_images(reader, IMAGES, seed, "fidelity", progress)]
    rows, pooled = (np.concatenate(part) for part in zip(*parts, strict=True))
    logits = reader.store.array("images/logits").take(rows)
    # positions without a place on the image are pooled as well, and left as they are
    weight = head[0] * (reader.positions / reader.spec.positions)
    covariance = statistics(reader, device=device, progress=progress).covariance
    return {
        name: fidelity_of(directions, pooled, logits, weight, covariance, seed) for name, directions in sets.items()
    }


def fidelity_of(
    directions: Directions,
    pooled: np.ndarray,
    logits: np.ndarray,
    weight: np.ndarray,
    covariance: np.ndarray,
    seed: int = 0,
) -> Fidelity:
    """Fidelity of one set.

    Parameters
    ----------
    pooled : (n, C) mean activations of images, and ``logits`` (n, K) the network's.
    weight : (K, C), what a change of the mean activation does to the logits.
    covariance : (C, C) of the layer's activations. seed : of the random filters.
    """
    # float32: K × n numbers are sorted for every draw
    centred, weight = (pooled.T - directions.mean[:, None]).astype(np.float32), weight.astype(np.float32)
    moved, truth = weight @ centred, np.ascontiguousarray(logits.T, np.float32)  # (K, n)
    ordered = np.sort(truth, 1)

    def errors(residual: np.ndarray) -> tuple[float, float]:
        return _mean_absolute(residual), _mean_absolute(np.sort(truth - residual, 1) - ordered)

    def of(filters: np.ndarray, signals: np.ndarray) -> tuple[float, float]:
        some = Directions(filters, signals, directions.mean, None, directions.method, directions.layer)
        return errors(moved - (weight @ signals).astype(np.float32) @ (readout(some).T.astype(np.float32) @ centred))

    generator = np.random.default_rng([seed, 0xF1])
    random = []
    for _ in range(DRAWS):
        filters = generator.standard_normal(directions.filters.shape)
        patterns = covariance @ filters
        signals = patterns / np.maximum(np.linalg.norm(patterns, axis=0), 1e-12)
        random.append(of(filters, signals))
    own = of(directions.filters, directions.signals)
    return Fidelity(*logits.shape, *(np.array(found) for found in (own, errors(moved), random)))


def _mean_absolute(values: np.ndarray) -> float:
    return float(np.abs(values).mean(dtype=np.float64))
