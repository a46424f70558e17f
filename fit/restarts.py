"""A start that does not depend on luck: several, each refined briefly, of which the losses choose.

One run of k-means may leave two concepts in one cluster and split another; its own objective does not tell (measured:
of 20 synthetic stores one in twenty, with the best of three runs by cosine). The losses do: a fit that mixes
concepts ends at two to four times the loss of one that does not. They also tell whether the data hold one concept a
position or several (``EDDPConfig``, regime).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fit.clustering import spherical_kmeans
from fit.detectors import Detectors
from fit.refine import refine
from fit.signals import moments_of
from fit.start import best_f1_thresholds, sample_rows
from stores.progress import Progress, silent

if TYPE_CHECKING:
    from fit.eddp import EDDPConfig


@dataclass(frozen=True)
class Beginning:
    """Detectors to refine, and the regime in which to."""

    detectors: Detectors
    soft: bool


def begin(rows: torch.Tensor, config: EDDPConfig, progress: Progress = silent) -> Beginning:
    """The best of ``restarts`` starts on whitened rows (n, r), by the loss after ``restart_steps`` on a sample of them."""
    soft = config.regime == "soft"
    if not (config.restart_steps and config.refine_steps) or (config.restarts == 1 and config.regime != "auto"):
        progress("clustering", 0, None, f"{len(rows)} positions")
        return Beginning(sharpened(from_clusters(rows, config, config.seed), config, soft), soft)
    sample = rows[sample_rows(len(rows), config.seed, rows.device, config.restart_rows)]
    moments = moments_of(sample)
    short = replace(config.refinement(soft), steps=config.restart_steps, batch_rows=0, patience=0, reseed=False)
    found = []
    for turn in range(config.restarts):
        progress("clustering", turn, config.restarts, f"{len(rows)} positions")
        clusters = from_clusters(rows, config, config.seed + 1000 * turn)
        refined = refine(sample, sharpened(clusters, config, soft), short, moments)
        found.append((refined.log[-1]["total"], clusters, refined))
        progress("clustering", turn + 1, config.restarts, f"loss {found[-1][0]:.3f}")
    _, clusters, refined = min(found, key=lambda turn: turn[0])
    if config.regime == "auto" and refined.log[-1]["sparsity"] > config.crisp:
        # what the sharp start learnt is how to tell overlapping concepts apart: the soft one begins from the clusters
        return Beginning(sharpened(clusters, config, True), True)
    return Beginning(refined.detectors.copy(), soft)


def sharpened(detectors: Detectors, config: EDDPConfig, soft: bool) -> Detectors:
    """The same detectors with the margins of the regime."""
    sharpness = config.begun_sharpness(soft)
    return Detectors(detectors.directions, detectors.offsets, detectors.log_margins - math.log(sharpness))


def from_clusters(rows: torch.Tensor, config: EDDPConfig, seed: int) -> Detectors:
    """Detectors from spherical k-means: centroid, best-F1 threshold, margin ``mean|distance| / 3``."""
    clusters = spherical_kmeans(
        rows,
        config.n_directions,
        seed=seed,
        iterations=config.kmeans_iterations,
        points_per_centroid=config.kmeans_points,
    )
    sample = sample_rows(len(rows), seed, rows.device)
    projection = rows[sample] @ clusters.centroids.T
    offsets = best_f1_thresholds(projection, clusters.assignment[sample])
    margins = (projection - offsets).abs().mean(0).clamp_min(1e-6) / 3
    return Detectors(clusters.centroids.T.contiguous(), offsets, margins.log())
