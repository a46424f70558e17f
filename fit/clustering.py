"""Directional clustering: spherical k-means by FAISS where it is installed and can use the device, else by torch."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from stores.errors import FitError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clusters:
    """``centroids`` (k, d) of unit norm, ``assignment`` (n,) int64 (−1 for zero vectors), ``objective``: mean cosine; ``engine``: what ran."""

    centroids: torch.Tensor
    assignment: torch.Tensor
    objective: float
    engine: str
    points: int


def spherical_kmeans(
    rows: torch.Tensor,
    k: int,
    *,
    seed: int,
    iterations: int = 25,
    points_per_centroid: int = 1024,
    restarts: int = 3,
) -> Clusters:
    """Cluster the directions of row vectors (n, d).

    Parameters
    ----------
    rows : (n, d) float32; normalised here (FAISS's ``spherical`` normalises centroids only). Zero vectors have no
        direction: they are left out and assigned to −1.
    points_per_centroid : at most this many points a centroid train the centroids (FAISS's own default is a silent 256);
        all rows are assigned.
    restarts : runs from other random centroids, of which the best objective is taken: a single run often leaves two
        directions in one cluster.

    Raises FitError when there are fewer distinct directions than clusters.
    """
    norms = rows.norm(dim=1)
    alive = norms > 1e-6 * norms.mean().clamp_min(1e-30)
    unit = rows[alive].div_(norms[alive, None])
    train = unit
    limit = k * points_per_centroid
    if len(unit) > limit:
        generator = torch.Generator().manual_seed(seed)
        train = unit[torch.randperm(len(unit), generator=generator)[:limit].to(unit.device)]
    if len(train) < k:
        raise FitError(
            f"{k} directions were asked for, but the store has only {len(train)} activation vectors that are not zero. "
            "Ask for fewer --directions or extract more images."
        )
    engine = kmeans_engine(rows.device)
    run = _faiss_kmeans if engine == "faiss" else _torch_kmeans
    centroids = run(train, k, seed, iterations, restarts)
    _refuse_too_few(train, centroids)
    near, assigned = nearest(unit, centroids)
    assignment = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    assignment[alive] = assigned
    return Clusters(centroids, assignment, float(near.double().mean()), engine, len(train))


def skewness_clusters(rows: torch.Tensor, k: int, *, seed: int, iterations: int = 25, steps: int = 100) -> Clusters:
    """Cluster the directions of whitened rows (n, d), k <= d, from directions of skewed projections.

    Independent components by FastICA with the nonlinearity ``g(p) = p²`` (Hyvärinen and Oja 2000, §6.2): concepts that are rarely on
    give projections with a long tail to one side. Lloyd's iterations continue from there. It finds many sparse concepts that k-means
    starts miss, and is worse where concepts overlap: one start among others.
    """
    generator = torch.Generator().manual_seed(seed)
    w = _orthonormal(torch.randn(rows.shape[1], k, generator=generator).to(rows))
    for _ in range(steps):
        p = rows @ w  # (n, k)
        before, w = w, _orthonormal(rows.T @ (p * p) / len(rows) - 2 * w * p.mean(0))
        if float((1 - (before * w).sum(0).abs()).max()) < 1e-4:
            break
    start = (w * (rows @ w).pow(3).mean(0).sign()).T  # the long tail is where the concept is
    norms = rows.norm(dim=1)
    unit = F.normalize(rows, dim=1)
    centroids = _lloyd(unit[norms > 0], k, generator, iterations, start)
    near, assigned = nearest(unit, centroids)
    return Clusters(centroids, assigned, float(near.double().mean()), "ica", len(rows))


def _orthonormal(w: torch.Tensor) -> torch.Tensor:
    """``W (WᵀW)^{-1/2}``: the nearest orthonormal columns."""
    u, _, v = torch.linalg.svd(w, full_matrices=False)
    return u @ v


def _refuse_too_few(unit: torch.Tensor, centroids: torch.Tensor) -> None:
    """Raise FitError when rows have fewer different directions than there are clusters: two of these are then one."""
    like = centroids @ centroids.T
    like.fill_diagonal_(0)
    if float(like.max()) < 1 - 1e-6:
        return
    different = len(torch.unique((unit * 1e5).round(), dim=0))
    if different < len(centroids):
        raise FitError(
            f"{len(centroids)} directions were asked for, but the activation vectors of the store have only {different} different "
            "directions. Ask for fewer --directions or extract more images."
        )


def nearest(unit: torch.Tensor, centroids: torch.Tensor, tile: int = 65536) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine (n,) and number (n,) of each row's nearest centroid, in tiles."""
    cosine = torch.empty(len(unit), device=unit.device)
    number = torch.empty(len(unit), dtype=torch.int64, device=unit.device)
    for start in range(0, len(unit), tile):
        value, index = (unit[start : start + tile] @ centroids.T).max(1)
        cosine[start : start + tile] = value
        number[start : start + tile] = index
    return cosine, number


def kmeans_engine(device: torch.device | str) -> Literal["faiss", "torch"]:
    """What runs spherical k-means on a device: FAISS where it is installed (on CUDA: its GPU build), else torch."""
    faiss = _faiss()
    if faiss is None:
        return "torch"
    on_gpu = torch.device(device).type == "cuda"
    return "torch" if on_gpu and not getattr(faiss, "get_num_gpus", lambda: 0)() else "faiss"


@functools.cache
def _faiss() -> Any:
    """FAISS, or None where it is not installed."""
    try:
        import faiss  # slow to import, and only needed here
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        return None
    return faiss


def _faiss_kmeans(unit: torch.Tensor, k: int, seed: int, iterations: int, restarts: int) -> torch.Tensor:
    kmeans = _faiss().Kmeans(
        unit.shape[1],
        k,
        niter=min(iterations, 2**31 - 1),
        nredo=restarts,
        seed=seed % (2**31 - 1) + 1,  # FAISS takes 0 for "unset", and no more than 31 bits
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(unit),  # the sample was drawn above, on purpose
        gpu=unit.device.type == "cuda",
    )
    kmeans.train(np.ascontiguousarray(unit.cpu().numpy(), np.float32))
    return F.normalize(torch.from_numpy(np.array(kmeans.centroids)).to(unit.device), dim=1)


def _torch_kmeans(unit: torch.Tensor, k: int, seed: int, iterations: int, restarts: int) -> torch.Tensor:
    """The best of several runs of Lloyd's iterations, by the mean cosine of rows with their centroids."""
    generator = torch.Generator().manual_seed(seed + 1)
    runs = [_lloyd(unit, k, generator, iterations) for _ in range(max(1, restarts))]
    return max(runs, key=lambda centroids: float(nearest(unit, centroids)[0].double().mean()))


def _lloyd(
    unit: torch.Tensor, k: int, generator: torch.Generator, iterations: int, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Lloyd's iterations on cosines, as FAISS does them; an empty cluster takes half of the largest one's points."""
    drawn = unit[torch.randperm(len(unit), generator=generator)[:k].to(unit.device)]
    centroids = (drawn if start is None else start).clone()
    for _ in range(iterations):
        _, number = nearest(unit, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, number, unit)
        counts = torch.bincount(number, minlength=k)
        for empty in torch.flatten(torch.nonzero(counts == 0)).tolist():
            largest = int(counts.argmax())
            members = torch.flatten(torch.nonzero(number == largest))
            half = members[torch.randperm(len(members), generator=generator)[: len(members) // 2].to(unit.device)]
            if not len(half):
                continue
            number[half] = empty
            moved = unit[half].sum(0)
            sums[empty], sums[largest] = moved, sums[largest] - moved
            counts[empty], counts[largest] = len(half), counts[largest] - len(half)
        centroids = F.normalize(sums, dim=1)
    return centroids
