"""A start that does not depend on luck: several, each refined briefly, of which the losses choose.

One run of k-means may leave two concepts in one cluster and split another; its own objective does not tell (measured:
of 20 synthetic stores one in twenty, with the best of three runs by cosine). The losses do: a fit that mixes
concepts ends at two to four times the loss of one that does not. They also tell whether the data hold one concept a
position or several (``EDDPConfig``, regime).

All of it sees a bounded sample of the rows. Of several ranks every one has the sample, and tries some of the starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fit.clustering import nearest, skewness_clusters, spherical_kmeans
from fit.config import EDDPConfig
from fit.detectors import Detectors
from fit.init import SAMPLE, best_f1_thresholds, sample_rows
from fit.refine import refine
from fit.reinit_dead import ENOUGH
from fit.row_sources import Positions, gathered, positions, ranks_of
from fit.signals import moments_of
from stores.progress import Progress, silent
from stores.ranks import Ranks

CLEARLY = (
    1.5  # times ``crisp``: where several concepts a position are likely, a first start that shares so much decides
)
SKEWED = 65536  # rows that independent components are found on


@dataclass(frozen=True)
class Beginning:
    """Detectors to refine, and the regime in which to."""

    detectors: Detectors
    soft: bool


@dataclass(frozen=True)
class _Tried:
    """A start: detectors as clusters gave them, those after a brief refinement, their loss and L_s."""

    clusters: Detectors
    refined: Detectors
    loss: float
    sparsity: float

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {"clusters": self.clusters, "refined": self.refined}
        kept = {f"{name}.{key}": tensor for name, part in named.items() for key, tensor in part.tensors().items()}
        return {**kept, "numbers": torch.tensor([self.loss, self.sparsity], dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], device: torch.device) -> _Tried:
        names = ("directions", "offsets", "log_margins")
        clusters, refined = (
            Detectors(*(tensors[f"{part}.{name}"].to(device) for name in names)) for part in ("clusters", "refined")
        )
        return cls(clusters, refined, *tensors["numbers"].tolist())


def begin(
    data: torch.Tensor | Positions, config: EDDPConfig, progress: Progress = silent, *, several: bool = False
) -> Beginning:
    """The best of ``restarts`` starts on whitened rows (n, r), by the loss after ``restart_steps`` on a sample of them.

    Of the rows a seeded sample is used: what k-means trains on, what thresholds are read from, what starts are refined on, at least
    200 000; all of them where there are no more. Of several ranks each gets the sample, and turn i is tried by rank ``i % n``.
    ``several``: the data are likely to hold several concepts a position, so one start that shares much decides for the soft regime.
    """
    whole = positions(data)
    most = max(config.n_directions * config.kmeans_points, config.restart_rows, SAMPLE)
    chosen = sample_rows(whole.count, config.seed, torch.device("cpu"), most)
    ranks, rows = ranks_of(whole), gathered(whole, chosen)
    soft = config.regime == "soft"
    if not (config.restart_steps and config.refine_steps) or (config.restarts == 1 and config.regime != "auto"):
        progress("clustering", 0, None, f"{len(rows)} positions")
        found = from_clusters(rows, config, config.seed).tensors() if ranks.rank == 0 else None
        given = {name: tensor.to(rows.device) for name, tensor in ranks.share(found).items()}
        return Beginning(sharpened(Detectors(**given), config, soft), soft)
    # components of fewer positions than this are noise, and cost I³ a step
    enough = len(rows) >= ENOUGH * config.n_directions
    skewed = not soft and config.restarts > 1 and enough and config.n_directions <= rows.shape[1]
    turns = config.restarts + skewed
    best = _best(rows, config, soft, range(1), ranks, progress)
    if turns > 1 and not (several and config.regime == "auto" and best.sparsity > CLEARLY * config.crisp):
        best = min(best, _best(rows, config, soft, range(1, turns), ranks, progress), key=lambda tried: tried.loss)
    if config.regime == "auto" and best.sparsity > config.crisp:
        # what the sharp start learnt is how to tell overlapping concepts apart: the soft one begins from the clusters
        return Beginning(sharpened(best.clusters, config, True), True)
    return Beginning(best.refined, soft)


def _best(rows: torch.Tensor, config: EDDPConfig, soft: bool, turns: range, ranks: Ranks, progress: Progress) -> _Tried:
    """Of the starts number ``turns`` that of least loss, the first of equals; number ``config.restarts`` is the skewed one."""
    sample = rows[sample_rows(len(rows), config.seed, rows.device, config.restart_rows)]
    moments = moments_of(sample)
    short = replace(config.refinement(soft), steps=config.restart_steps, batch_rows=0, patience=0, reseed=False)
    tried: dict[int, _Tried] = {}
    losses = torch.zeros(len(turns), dtype=torch.float64, device=rows.device)
    for turn in turns[ranks.rank :: ranks.size]:
        progress("clustering", turn, turns.stop, f"{len(rows)} positions")
        clusters = from_clusters(rows, config, config.seed + 1000 * turn, skewed=turn == config.restarts)
        refined = refine(sample, sharpened(clusters, config, soft), short, moments)
        loss = refined.log[-1]["total"]
        tried[turn] = _Tried(clusters, refined.detectors.copy(), loss, refined.log[-1]["sparsity"])
        losses[turn - turns.start] = loss
        progress("clustering", turn + 1, turns.stop, f"loss {loss:.3f}")
    ranks.sum(losses)
    first = min(range(len(turns)), key=losses.tolist().__getitem__)
    if ranks.size == 1:
        return tried[turns[first]]
    own = tried[turns[first]].tensors() if turns[first] in tried else None
    return _Tried.from_tensors(ranks.share(own, source=first % ranks.size), rows.device)


def sharpened(detectors: Detectors, config: EDDPConfig, soft: bool) -> Detectors:
    """The same detectors with the margins of the regime."""
    sharpness = config.begun_sharpness(soft)
    return Detectors(detectors.directions, detectors.offsets, detectors.log_margins - math.log(sharpness))


def from_clusters(rows: torch.Tensor, config: EDDPConfig, seed: int, *, skewed: bool = False) -> Detectors:
    """Detectors from spherical k-means: centroid, best-F1 threshold, margin ``mean|distance| / 3``; ``skewed``: started from
    ``skewness_clusters``."""
    if skewed:
        some = rows[sample_rows(len(rows), seed, rows.device, SKEWED)]
        clusters = skewness_clusters(some, config.n_directions, seed=seed, iterations=config.kmeans_iterations)
        clusters = replace(clusters, assignment=nearest(F.normalize(rows, dim=1), clusters.centroids)[1])
    else:
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
