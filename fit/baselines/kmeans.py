"""Spherical k-means of the activations: each centroid is both filter and signal vector (as in ACE and CRAFT's kin)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint
from fit.clustering import spherical_kmeans
from fit.config import FitterConfig
from fit.init import best_f1_thresholds, sample_rows
from fit.whiten import whiten_store, whitening
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics


@dataclass(frozen=True)
class KMeansConfig(FitterConfig):
    """``space``: cluster activations as they are, centred, or whitened (then the filters are Tᵀ c and the signals T⁺ c).

    ``threshold`` "assignment": the best F1 of the projection against membership of the cluster, which is what a cluster
    detects; "quantile": the top 0.5 % of positions (Network Dissection's rule for units).
    """

    threshold: Literal["assignment", "quantile"] = "assignment"
    space: Literal["raw", "centred", "whitened"] = "raw"
    rank: int | None = None
    iterations: int = 25
    points_per_centroid: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=("iterations", "points_per_centroid", "rank"))


class KMeans(Fitter[KMeansConfig]):
    """Only directional clustering."""

    name: ClassVar[str] = "kmeans"
    configuration: ClassVar[type[KMeansConfig]] = KMeansConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Cluster at most ``directions × points_per_centroid`` positions, drawn from all of them."""
        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        take = config.n_directions * config.points_per_centroid
        transform = None
        if config.space == "whitened":
            transform = whitening(moments, rank=config.rank or max(64, config.n_directions))
            rows = whiten_store(reader, transform, config, max_rows=take, pooled=False, progress=progress).rows
        else:
            rows = torch.from_numpy(reader.sampled_rows(take, config.seed)).to(config.device).float()
            if config.space == "centred":
                rows = rows - torch.from_numpy(moments.mean).to(rows)
        progress("clustering", 0, None, f"{len(rows)} positions")
        clusters = spherical_kmeans(
            rows,
            config.n_directions,
            seed=config.seed,
            iterations=config.iterations,
            points_per_centroid=config.points_per_centroid,
        )
        centroids = clusters.centroids.T.cpu()
        filters, signals = centroids, centroids
        if transform is not None:
            filters, signals = transform.forward.T @ centroids, transform.backward @ centroids
        thresholds = None
        if config.threshold == "assignment":
            sample = sample_rows(len(rows), config.seed, rows.device)
            projection = rows[sample] @ clusters.centroids.T
            thresholds = best_f1_thresholds(projection, clusters.assignment[sample]).cpu()
            if config.space != "raw":  # rows were centred: w·(x − μ) > b is w·x > b + w·μ
                thresholds = thresholds + torch.from_numpy(moments.mean).float() @ filters
        return self.fitted(
            reader,
            filters=filters,
            signals=signals,
            mean=moments.mean,
            thresholds=thresholds,
            rank=None if transform is None else transform.rank,
            mean_cosine=round(clusters.objective, 6),
            engine=clusters.engine,
            points=clusters.points,
        )
