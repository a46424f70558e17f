"""The start of a refinement: the best of several, each refined briefly, by the losses.

One run of k-means may leave two concepts in one cluster and split another, which its own objective does not show (in one of 20
synthetic stores, with the best of three runs by cosine). The losses do: a fit that mixes concepts ends at two to four times the loss of
one that does not. They also show whether the data hold one concept a position or several (``EDDPConfig``, regime).

All of it sees a bounded sample of the rows. Each of several ranks has the sample, and tries some of the starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fit.clustering import nearest, skewness_clusters, spherical_kmeans
from fit.config import EDDPConfig
from fit.detectors import Detectors
from fit.refine import refine
from fit.reinit_dead import ENOUGH
from fit.row_sources import Positions, gathered, positions
from fit.signals import moments_of
from stores.progress import Progress, silent
from stores.ranks import Ranks

SAMPLE = 200_000  # positions that the best threshold is read from; more change it by less than the refinement does
CLEARLY = 1.5  # times ``crisp``: where several concepts a position are likely, a first start above it decides
SKEWED = 65536  # rows that independent components are found on


@dataclass(frozen=True)
class Start:
    """Detectors to refine, and the regime in which to."""

    detectors: Detectors
    soft: bool


@dataclass(frozen=True)
class _Tried:
    """Detectors as clusters gave them, the same after a brief refinement, and its loss and L_s."""

    loss: float
    sparsity: float
    clusters: Detectors
    refined: Detectors


def find_start(
    data: torch.Tensor | Positions, config: EDDPConfig, progress: Progress = silent, *, several: bool = False
) -> Start:
    """The best of ``restarts`` starts on whitened rows (n, r), by the loss after ``restart_steps`` on a sample of them.

    The seeded sample holds what k-means trains on, what thresholds are read from and what starts are refined on, at least 200 000 rows.
    Each of several ranks has it, and rank ``i % n`` tries start i.
    ``several``: the data are likely to hold several concepts a position, so one start that shares much decides for the soft regime.
    """
    all_rows = positions(data)
    most = max(config.n_directions * config.kmeans_points, config.restart_rows, SAMPLE)
    chosen = sample_rows(all_rows.count, config.seed, torch.device("cpu"), most)
    ranks, rows = all_rows.ranks, gathered(all_rows, chosen)
    soft = config.regime == "soft"
    if not (config.restart_steps and config.refine_steps) or (config.restarts == 1 and config.regime != "auto"):
        progress("clustering", 0, None, f"{len(rows)} positions")
        found = from_clusters(rows, config, config.seed).tensors() if ranks.rank == 0 else None
        return Start(sharpened(Detectors.from_tensors(ranks.share(found), rows.device), config, soft), soft)
    # components of fewer positions than this are noise, and cost I³ a step
    enough = len(rows) >= ENOUGH * config.n_directions
    skewed = not soft and config.restarts > 1 and enough and config.n_directions <= rows.shape[1]
    turns = config.restarts + skewed
    best = _best(rows, config, soft, range(1), ranks, progress)
    if turns > 1 and not (several and config.regime == "auto" and best.sparsity > CLEARLY * config.crisp):
        best = min(best, _best(rows, config, soft, range(1, turns), ranks, progress), key=lambda tried: tried.loss)
    if config.regime == "auto" and best.sparsity > config.crisp:
        # the sharp start learnt to separate overlapping concepts: the soft one starts from the clusters
        return Start(sharpened(best.clusters, config, True), True)
    return Start(best.refined, soft)


def _best(rows: torch.Tensor, config: EDDPConfig, soft: bool, turns: range, ranks: Ranks, progress: Progress) -> _Tried:
    """Of the starts number ``turns`` that of least loss, the first of equals; number ``config.restarts`` is the skewed one."""
    sample = rows[sample_rows(len(rows), config.seed, rows.device, config.restart_rows)]
    moments, regime = moments_of(sample), config.regime_settings(soft)
    short = replace(config, refine_steps=config.restart_steps, batch_rows=0, patience=0, reseed=False)
    tried: dict[int, dict[str, torch.Tensor]] = {}
    losses = torch.zeros(len(turns), dtype=torch.float64, device=rows.device)
    for turn in turns[ranks.rank :: ranks.size]:
        progress("clustering", turn, turns.stop, f"{len(rows)} positions")
        clusters = from_clusters(rows, config, config.seed + 1000 * turn, skewed=turn == config.restarts)
        refined = refine(sample, sharpened(clusters, config, soft), short, regime, moments)
        loss = refined.log[-1]["total"]
        numbers = torch.tensor([loss, refined.log[-1]["sparsity"]], dtype=torch.float64)
        both = clusters.tensors("clusters.") | refined.detectors.copy().tensors("refined.")
        tried[turn] = {**both, "numbers": numbers}
        losses[turn - turns.start] = loss
        progress("clustering", turn + 1, turns.stop, f"loss {loss:.3f}")
    ranks.sum(losses)
    first = min(range(len(turns)), key=losses.tolist().__getitem__)
    best = ranks.share(tried.get(turns[first]), source=first % ranks.size)
    loss, sparsity = best["numbers"].tolist()
    starts = (Detectors.from_tensors(best, rows.device, prefix) for prefix in ("clusters.", "refined."))
    return _Tried(loss, sparsity, *starts)


def sharpened(detectors: Detectors, config: EDDPConfig, soft: bool) -> Detectors:
    """The same detectors with the margins of the regime."""
    sharpness = config.regime_settings(soft).sharpness
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


def best_f1_thresholds(projection: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Threshold of each detector with the best F1 of ``projection > threshold`` against cluster membership.

    Parameters
    ----------
    projection : (n, I) projections of positions on directions.
    member : (n,) int64 cluster of each position, −1 for none; detector i's truth is ``member == i``.

    Returns (I,), the middle between the last accepted and the first rejected projection.
    """
    n, count = projection.shape
    thresholds = torch.empty(count, dtype=projection.dtype, device=projection.device)
    ranks = torch.arange(1, n + 1, device=projection.device, dtype=torch.float64)
    for i in range(count):  # one column at a time: sorting all at once would hold n × I twice
        value, order = projection[:, i].sort(descending=True)
        truth = (member[order] == i).double()
        hits = truth.cumsum(0)
        f1 = 2 * hits / (ranks + truth.sum()).clamp_min(1)
        best = int(f1.argmax())
        below = value[min(best + 1, n - 1)]
        thresholds[i] = (value[best] + below) / 2
    return thresholds


def sample_rows(n: int, seed: int, device: torch.device, most: int = SAMPLE) -> torch.Tensor:
    """Numbers of at most ``most`` rows out of n, seeded."""
    if n <= most:
        return torch.arange(n, device=device)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:most].sort().values.to(device)
