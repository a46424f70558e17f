"""How alike directions are: the nearest of each, and a map in which alike ones are close."""

from __future__ import annotations

import numpy as np

from stores.similarity import cosines, unit

FEW = 10  # directions: fewer are mapped by classical scaling, neighbourhoods mean nothing among them
MANY = 300  # directions: of more, the gradients of t-SNE are approximated
BLOCK = 1024  # directions whose nearest are looked for at a time


def nearest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` columns of ``vectors`` (C, I) of largest cosine to each, itself left out: numbers and cosines (I, ≤ count), nearest first."""
    n = vectors.shape[1]
    order, values = np.zeros((n, min(count, n - 1)), np.int64), np.zeros((n, min(count, n - 1)))
    for start in range(0, n, BLOCK):
        some = slice(start, start + BLOCK)
        found = cosines(vectors[:, some], vectors)
        found[np.arange(len(found)), start + np.arange(len(found))] = -np.inf
        order[some] = np.argsort(-found, axis=1, kind="stable")[:, : order.shape[1]]
        values[some] = np.take_along_axis(found, order[some], 1)
    return order, values


def scaled(vectors: np.ndarray) -> np.ndarray:
    """(I, 2) classical scaling (Torgerson 1952) of the unit vectors of columns (C, I); signs are fixed, so that a map is not mirrored by chance."""
    directions = unit(vectors.astype(np.float64))
    _, lengths, axes = np.linalg.svd(directions - directions.mean(1, keepdims=True), full_matrices=False)
    places = np.zeros((vectors.shape[1], 2))
    for k in range(min(2, len(lengths))):
        axis = axes[k] * lengths[k]
        places[:, k] = axis if axis[np.abs(axis).argmax()] >= 0 else -axis
    return places


def similarity_map(vectors: np.ndarray) -> np.ndarray:
    """Places (I, 2) in the unit square, its middle theirs, of columns (C, I): those of large cosine are close. Both axes have one scale.

    t-SNE (van der Maaten & Hinton 2008) of 1 − cosine, started at the classical scaling: the same vectors give the same map. Its gradients
    are exact up to 300 directions, and Barnes & Hut's of more. Fewer than ten directions are scaled classically.
    """
    n = vectors.shape[1]
    places = scaled(vectors)
    if n >= FEW:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        start = places / max(float(places[:, 0].std()), 1e-12) * 1e-4
        how = TSNE(metric="cosine", init=start, perplexity=min(30.0, (n - 1) / 3), learning_rate="auto",
                   method="exact" if n <= MANY else "barnes_hut", max_iter=500, random_state=0)  # fmt: skip
        with threadpool_limits(1):  # sums of several threads come in any order
            places = how.fit_transform(unit(vectors.astype(np.float64)).T).astype(np.float64)
    low, high = places.min(0), places.max(0)
    span = float((high - low).max())
    return np.clip((places - (low + high) / 2) / (span if span > 1e-9 else 1) + 0.5, 0, 1)
