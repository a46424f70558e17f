"""The network's classes over a store's images: the class predicted for each image, how often that is right, examples of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from extract.classes import image_classes
from stores.errors import MismatchError
from stores.store import ActivationStore


@dataclass(frozen=True)
class ClassPredictions:
    """The predicted classes of images.

    ``prediction`` (N,): class of largest logit, −1 for an image that could not be read. ``count`` (K,): images predicted as each
    class. ``rows``, ``probability``: of each class, images predicted as it, surest first. ``labelled``, ``right`` (K,): images
    that carry each class as their label, and how many of them are predicted as it; None where labels are no classes.
    """

    prediction: np.ndarray
    count: np.ndarray
    rows: list[list[int]]
    probability: list[list[float]]
    labelled: np.ndarray | None
    right: np.ndarray | None

    @property
    def accuracy(self) -> float | None:
        """Share of labelled images that are predicted as their class."""
        if self.labelled is None or self.right is None:
            return None
        return float(self.right.sum() / max(int(self.labelled.sum()), 1))


def class_predictions(store: ActivationStore, examples: int) -> ClassPredictions:
    """Read the store's logits chunk by chunk; the table of all images and classes is never in memory."""
    logits, valid = store.array("images/logits"), store.valid
    n_classes = int(logits.shape[1])
    prediction = np.full(store.n_images, -1, np.int64)
    probability = np.zeros(store.n_images)
    for k, stored in enumerate(logits.each(range(store.n_chunks))):
        part = np.asarray(stored, np.float64)
        first = k * store.chunk_images
        on = np.flatnonzero(valid[first : first + len(part)])
        part = np.nan_to_num(part[on], nan=-np.inf)
        peak = part.max(1, keepdims=True)
        prediction[first + on] = part.argmax(1)
        probability[first + on] = 1 / np.exp(part - peak).sum(1)
    known = np.flatnonzero(prediction >= 0)
    order = known[np.lexsort((known, -probability[known], prediction[known]))]
    edges = np.searchsorted(prediction[order], np.arange(n_classes + 1))
    rows = [order[a : min(b, a + examples)].tolist() for a, b in pairwise(edges)]
    truth = true_classes(store)
    labelled = right = None
    if truth is not None:
        both = (truth >= 0) & (prediction >= 0)
        labelled = np.bincount(truth[both], minlength=n_classes)
        right = np.bincount(truth[both & (truth == prediction)], minlength=n_classes)
    sure = [[float(probability[row]) for row in mine] for mine in rows]
    return ClassPredictions(prediction, np.diff(edges), rows, sure, labelled, right)


def true_classes(store: ActivationStore) -> np.ndarray | None:
    """(N,) class that each image is labelled with, −1 for none; None where no image has one, or labels are no classes."""
    try:
        found = store.labels if "synthetic" in store.provenance else image_classes(store)
    except MismatchError:
        return None
    return found if (found >= 0).any() else None


def class_titles(names: Sequence[str] | None, count: int) -> list[str]:
    """The classes' names, ``class k`` where there is none."""
    return [names[k] if names and k < len(names) and names[k] else f"class {k}" for k in range(count)]
