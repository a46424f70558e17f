"""How alike directions are: cosines, the nearest of each, and a map in which alike ones lie together."""

from __future__ import annotations

import numpy as np

FEW = 10  # directions: fewer are mapped by classical scaling, neighbourhoods mean nothing among them


def cosines(vectors: np.ndarray) -> np.ndarray:
    """(I, I) float64 cosines of the columns of ``vectors`` (C, I); 0 for a column of zeros, 1 on the diagonal."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=0)
    unit = vectors / np.where(length > 0, length, 1)
    found = np.clip(unit.T @ unit, -1, 1)
    np.fill_diagonal(found, 1)
    return found


def nearest(cosine: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` directions of largest cosine to each, itself left out: numbers and cosines (I, ≤ count), nearest first."""
    others = cosine.copy()
    np.fill_diagonal(others, -np.inf)
    order = np.argsort(-others, axis=1, kind="stable")[:, : min(count, len(cosine) - 1)]
    return order, np.take_along_axis(others, order, 1)


def scaled(cosine: np.ndarray) -> np.ndarray:
    """(I, 2) classical scaling (Torgerson 1952) of unit vectors given by their cosines (I, I); signs are fixed, so that a map is not mirrored by chance."""
    n = len(cosine)
    centred = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(
        centred @ cosine @ centred
    )  # −½ D² of unit vectors, up to the mean, is their cosine
    places = np.zeros((n, 2))
    for k in range(min(2, n)):
        axis = vectors[:, -1 - k] * np.sqrt(max(values[-1 - k], 0.0))
        peak = axis[np.abs(axis).argmax()]
        places[:, k] = axis if peak >= 0 else -axis
    return places


def similarity_map(cosine: np.ndarray) -> np.ndarray:
    """Places (I, 2) in the unit square, its middle theirs: directions of large cosine lie together. Both axes have one scale.

    t-SNE (van der Maaten & Hinton 2008) of 1 − cosine, started at the classical scaling and with exact gradients: the same
    cosines give the same map. Fewer than ten directions are scaled classically.
    """
    n = len(cosine)
    places = scaled(cosine)
    if n >= FEW:
        from sklearn.manifold import TSNE

        start = places / max(float(places[:, 0].std()), 1e-12) * 1e-4
        how = TSNE(metric="precomputed", init=start, perplexity=min(30.0, (n - 1) / 3), learning_rate="auto",
                   method="exact", max_iter=500, random_state=0)  # fmt: skip
        places = how.fit_transform(np.maximum(1 - cosine, 0)).astype(np.float64)
    low, high = places.min(0), places.max(0)
    span = float((high - low).max())
    return np.clip((places - (low + high) / 2) / (span if span > 1e-9 else 1) + 0.5, 0, 1)
