"""Detectors that found nothing start again where nothing is detected."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fit.clustering import spherical_kmeans
from fit.detectors import Detectors
from fit.diagnostics import DEAD, DUPLICATE, TOGETHER
from fit.losses import Sums
from fit.row_sources import Positions, tiles
from stores.errors import FitError

ENOUGH = 32  # positions that a new detector needs to start with
KEEP = 65536  # undetected positions looked at, at most


@torch.no_grad()
def reseed(rows: Positions, detectors: Detectors, sums: Sums, seed: int) -> torch.Tensor:
    """Give dead and duplicate detectors the directions in which undetected positions cluster, in place.

    Returns the numbers of the detectors concerned (m,), empty when all are of use or nothing is left undetected. Filters
    become the centroids, thresholds half the median projection of the cluster, margins those of the median detector.
    """
    ranks = rows.ranks
    # rank 0 decides: the others may round differently
    idle = ranks.share({"idle": superfluous(detectors, sums)})["idle"].to(detectors.offsets.device)
    if not len(idle):
        return idle
    filters, thresholds = detectors.linear()
    keep = torch.ones(filters.shape[1], dtype=torch.bool, device=filters.device)
    keep[idle] = False
    w, b = filters[:, keep], thresholds[keep]
    left: list[torch.Tensor] = []
    for y in tiles(rows, 16384):
        dark = y[~(torch.addmm(-b, y, w) > 0).any(1)] if w.shape[1] else y
        # evenly from all over the data: a store is often sorted by class
        most = max(1, KEEP * len(y) // rows.count)
        left.append(dark[:: max(1, -(-len(dark) // most))].clone())
    undetected = ranks.gather(torch.cat(left) if left else detectors.offsets.new_zeros(0, len(filters)))
    idle = idle[: len(undetected) // ENOUGH]
    if not len(idle):
        return idle
    found = ranks.share(_clusters(undetected, len(idle), seed) if ranks.rank == 0 else None)
    if not found:
        return idle[:0]
    detectors.directions[:, idle] = found["centroids"].T.to(idle.device)
    detectors.offsets[idle] = found["half"].to(idle.device)
    detectors.log_margins[idle] = detectors.log_margins.median()
    return idle


def _clusters(rows: torch.Tensor, count: int, seed: int) -> dict[str, torch.Tensor]:
    """``centroids`` (count, r) of rows (n, r), and ``half`` each one's median projection; empty where there are not so many clusters."""
    try:
        clusters = spherical_kmeans(rows, count, seed=seed, restarts=1)
    except FitError:  # fewer distinct directions than detectors: they are left as they are
        return {}
    projection = rows @ clusters.centroids.T
    half = torch.stack([
        projection[clusters.assignment == k, k].median() / 2 if bool((clusters.assignment == k).any()) else projection[:, k].max()
        for k in range(count)
    ])  # fmt: skip
    return {"centroids": clusters.centroids, "half": half}


def superfluous(detectors: Detectors, sums: Sums) -> torch.Tensor:
    """Numbers of detectors that are positive almost nowhere, or (nearly) where another of the same direction is."""
    share = sums.positives.double() / max(sums.count, 1)
    dead = share < DEAD
    unit = F.normalize(detectors.directions, dim=0)
    union = share[:, None] + share[None] - sums.together
    same = (unit.T @ unit > DUPLICATE) & (sums.together > TOGETHER * union.clamp_min(1e-12))
    # of two that are the same, the one with fewer positives; of equals the later one
    rank = torch.argsort(torch.argsort(-share, stable=True), stable=True)
    worse = same & (rank[:, None] > rank[None])
    return torch.flatten(torch.nonzero(dead | worse.any(1)))
