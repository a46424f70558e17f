"""Labels from image-level classes, without masks: the classes whose images a direction's logit ranks first (INVERT, Bykov et al. 2023).

An image's value is its mean logit over positions, which is what INVERT compares and what a pooling head reads. A label is a class, up to
three classes joined by OR, or NOT one of these; a beam search takes the one of largest AUROC. An image has one class: AND of two classes
is empty and ``A AND NOT B`` is ``A``, so that no other formula says more, and the AUROC of each follows from sums of ranks by class.

A label is chosen on one half of the images and tested on the other, so that the search needs no correction. Two p-values are computed
there [ours]: against chance (Mann–Whitney: images and classes have nothing to do with each other) and against random directions that
went through the same search, because activations separate classes along most directions. A label is significant where both stay below 5 %
after Benjamini & Hochberg over the directions of a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluate.bootstrap import REPLICATES, interval, poisson_weights
from evaluate.influence.significance import bh_adjusted
from evaluate.influence.steering import random_units
from evaluate.report.class_predictions import class_predictions, class_titles, true_classes
from extract.video_rows import video_of
from stores.documents import brief
from stores.errors import UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader, Part
from stores.store import ActivationStore

MOST_CLASSES, BEAM = 3, 5  # of a formula, and formulas that are extended (INVERT)
LEAST = 10  # images of a label, and images without it, in each half
RANDOMS = 1000
LEVEL = 0.05
TOP = 20  # images where a filter fires most
MOST_IMAGES, MOST_VALUES = 50_000, 2**26  # pooled activations in memory
BLOCK = 256  # directions that are ranked at a time


class FewImagesError(UsageError):
    """Fewer than two classes have images enough for labels."""


@dataclass(frozen=True)
class ClassFormula:
    """Images of any of ``classes``, or with ``negated`` all others."""

    classes: tuple[int, ...]
    negated: bool = False

    def text(self, names: Sequence[str]) -> str:
        """Such as ``zebra``, ``cat OR dog``, ``NOT (cat OR dog)``."""
        joined = " OR ".join(names[k] for k in self.classes)
        return joined if not self.negated else f"NOT {joined}" if len(self.classes) == 1 else f"NOT ({joined})"

    def holds(self, classes: np.ndarray) -> np.ndarray:
        """(n,) bool: for which images of these classes it is true."""
        return np.isin(classes, self.classes) != self.negated


@dataclass(frozen=True)
class ImageClasses:
    """Classes of a store's images: ``number`` (N,) among ``names``, −1 for none, from ``source``: labels or predictions; ``of_model`` (N,)
    among the model's classes."""

    number: np.ndarray
    names: list[str]
    source: str
    of_model: np.ndarray


@dataclass(frozen=True)
class ClassLabels:
    """Labels of one set's I directions: ``labels``, and on the half that they were not chosen on ``auroc``, ``auroc_low``, ``auroc_high`` (its
    95 % interval), ``p`` (Mann–Whitney), ``p_random`` and ``q`` (the larger of both, Benjamini & Hochberg), each (I,).

    ``fires``: the model's classes of the images where each filter fires most, the most frequent first. ``mean``: of ``auroc``, with its
    interval. ``randoms``: how many random directions there were, ``mean_random`` their mean AUROC, and ``reached``: the share of them that reach the
    median AUROC of the set. ``images``: of both halves.
    """

    labels: list[str]
    auroc: np.ndarray
    auroc_low: np.ndarray
    auroc_high: np.ndarray
    p: np.ndarray
    p_random: np.ndarray
    q: np.ndarray
    fires: list[list[int]]
    mean: tuple[float, float, float]
    randoms: int
    mean_random: float
    reached: float
    images: int
    source: str

    @property
    def significant(self) -> np.ndarray:
        return np.asarray(self.q <= LEVEL)


def classes_of_images(store: ActivationStore) -> ImageClasses:
    """The images' labels by the names of the model's classes, or by the dataset's; where no image has a label, the predicted classes."""
    labels, matched = store.labels[: store.n_images], true_classes(store)
    predicted = class_predictions(store, 0).prediction if matched is None else matched
    titles = class_titles(store.class_names, int(store.attributes["n_classes"]))
    if (labels < 0).all():
        return ImageClasses(predicted, titles, "predictions", predicted)
    if matched is not None and store.class_names:
        return ImageClasses(matched, titles, "labels", matched)
    names = class_titles(store.provenance.get("dataset", {}).get("class_names"), int(labels.max()) + 1)
    return ImageClasses(labels, names, "labels", predicted)


def label_by_classes(
    reader: LayerReader, filters: Mapping[str, np.ndarray], *, seed: int = 0, progress: Progress = silent
) -> dict[str, ClassLabels]:
    """Label the directions of each set, given by filters (C, I), by the classes of the store's images; one pass over them.

    Rows that are frames or views of one video count as one image. Of very many images a random part is used.

    Raises FewImagesError where fewer than two classes have images enough.
    """
    classes = classes_of_images(reader.store)
    image, rows = _images(reader, classes.number, seed)
    number = classes.number[rows]
    first = Part(0, 2, seed).choose(number, np.ones(len(number), bool))
    shown = [np.bincount(number[half], minlength=len(classes.names)) for half in (first, ~first)]
    used = np.flatnonzero(np.minimum(*shown) >= LEAST)
    if len(used) < 2:
        images = shown[0] + shown[1]
        most = [f"{classes.names[k]} {images[k]}" for k in np.argsort(-images, kind="stable")[:3] if images[k]]
        raise FewImagesError(
            f"--classes needs two classes of at least {2 * LEAST} images each. The largest classes ({classes.source}) of the {len(number)} images "
            f"of '{reader.store.path}': {brief(', '.join(most) or 'none')}. Extract more images, or leave --classes out."
        )
    pooled = _pool(reader, image, len(rows), progress)
    search, test = (_Half(pooled[half], number[half], used) for half in (first, ~first))
    largest = max(part.shape[1] for part in filters.values())
    # as many that a single direction of a file can be significant
    randoms = random_units(reader.channels, max(RANDOMS, int(largest / LEVEL)), seed).numpy()
    chance = np.sort([one.auroc for one in _choose(search, test, randoms)])
    weights = np.stack([poisson_weights(seed, row, REPLICATES) for row in rows[~first].tolist()], 1)
    found = {}
    for done, (name, part) in enumerate(filters.items(), 1):
        chosen = list(_choose(search, test, part))
        auroc, p = np.array([one.auroc for one in chosen]), np.array([one.p for one in chosen])
        p_random = (len(chance) - np.searchsorted(chance, auroc - 1e-9) + 1) / (len(chance) + 1)
        logits = pooled @ part
        replicates = np.stack(
            [
                weighted_auroc(logits[~first, i], one.formula.holds(test.number), weights)
                for i, one in enumerate(chosen)
            ],
            1,
        )
        low, high = interval(replicates)
        ends = interval(replicates.mean(1))
        found[name] = ClassLabels(
            [one.formula.text(classes.names) for one in chosen], auroc, low, high, p, p_random,
            bh_adjusted(np.maximum(p, p_random)), _fires(logits, classes.of_model[rows]),
            (float(auroc.mean()), float(ends[0]), float(ends[1])),
            len(chance), float(chance.mean()), float((chance >= np.median(auroc) - 1e-9).mean()), len(rows), classes.source,
        )  # fmt: skip
        progress("label search", done, len(filters))
    return found


def search_formula(sums: np.ndarray, counts: np.ndarray, images: int) -> ClassFormula:
    """The formula of largest AUROC that a beam search finds, of equals the shorter one.

    Parameters
    ----------
    sums, counts : (K,) sum of the ranks, from 1, of the images of each class, and how many these are.
    images : that were ranked, those of no such class included. At least ``LEAST`` must be of no class of the formula, and NOT is only
        tried where at most half of the images are left.
    """
    beam: list[tuple[int, ...]] = [()]
    best, most = ClassFormula((0,)), -1.0
    for _ in range(MOST_CLASSES):
        tried: dict[tuple[int, ...], float] = {}
        for chosen in beam:
            inside = list(chosen)
            size = counts[inside].sum() + counts
            value = auroc_of(sums[inside].sum() + sums, size, images)
            value = np.where(2 * size >= images, np.maximum(value, 1 - value), value)
            value[(images - size) < LEAST] = value[inside] = -1
            for k in np.argsort(-value, kind="stable")[:BEAM].tolist():
                if value[k] >= 0:
                    tried[tuple(sorted((*chosen, k)))] = float(value[k])
        beam = sorted(tried, key=lambda formula: (-tried[formula], formula))[:BEAM]
        if beam and tried[beam[0]] > most + 1e-9:
            most, size = tried[beam[0]], counts[list(beam[0])].sum()
            plain = float(auroc_of(sums[list(beam[0])].sum(), size, images))
            best = ClassFormula(beam[0], bool(2 * size >= images and plain < 0.5))
    return best


def auroc_of(sums: np.ndarray, size: np.ndarray, images: int) -> np.ndarray:
    """AUROC of ``size`` of the images, from the sum of their ranks."""
    return np.asarray((sums - size * (size + 1) / 2) / np.maximum(size * (images - size), 1))


def weighted_auroc(values: np.ndarray, holds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) AUROC of ``values`` (n,) for a label, where replicate b counts image i ``weights[b, i]`` times; 0.5 where one side is empty."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # of equal values
    ordered = weights[:, order].astype(np.float64)
    yes = np.add.reduceat(ordered * holds[order], starts, 1)
    no = np.add.reduceat(ordered * ~holds[order], starts, 1)
    pairs = yes.sum(1) * no.sum(1)
    won = (yes * (no.cumsum(1) - no / 2)).sum(1)
    return np.where(pairs > 0, won / np.maximum(pairs, 1), 0.5)


@dataclass(frozen=True)
class _Scored:
    """A formula by class numbers, chosen on one half, and its AUROC and p on the other."""

    formula: ClassFormula
    auroc: float
    p: float


class _Half:
    """Pooled activations (n, C) of half of the images, in the order of their classes."""

    def __init__(self, pooled: np.ndarray, number: np.ndarray, used: np.ndarray) -> None:
        self.number, self.used = number, used
        self.images = len(number)
        at = [np.flatnonzero(number == k) for k in used]
        self.counts = np.array([len(rows) for rows in at])
        others = np.flatnonzero(~np.isin(number, used))
        self._pooled = pooled[np.concatenate([*at, others])]
        self._starts = np.cumsum([0, *self.counts])

    def ranked(self, filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of ranks of each class used (K, m), and the variance of the ranks (m,)."""
        from scipy.stats import rankdata  # takes a second to import: only who asks for it waits

        ranks = rankdata(self._pooled @ filters, axis=0)
        sums = [ranks[start:stop].sum(0) for start, stop in pairwise(self._starts.tolist())]
        return np.stack(sums), ranks.var(0, ddof=1)


def _choose(search: _Half, test: _Half, filters: np.ndarray) -> Iterator[_Scored]:
    """The label of each filter (C, I), chosen on one half and tested on the other."""
    from scipy.stats import norm

    for start in range(0, filters.shape[1], BLOCK):
        part = filters[:, start : start + BLOCK]
        (sums, _), (tested, variance) = search.ranked(part), test.ranked(part)
        for i in range(part.shape[1]):
            found = search_formula(sums[:, i], search.counts, search.images)
            inside = list(found.classes)
            size = test.counts[inside].sum()
            plain = float(auroc_of(tested[inside, i].sum(), size, test.images))
            auroc = 1 - plain if found.negated else plain
            # U's variance with ties, from that of the ranks
            deviation = np.sqrt(variance[i] / (test.images * size * (test.images - size)))
            p = float(norm.sf((auroc - 0.5) / deviation)) if deviation > 0 else 1.0
            yield _Scored(ClassFormula(tuple(search.used[inside].tolist()), found.negated), auroc, p)


def _images(reader: LayerReader, number: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of the store the image that it belongs to (N,), −1 for one without a class or not drawn; the first row of each image."""
    rows = reader.image_indices[number[reader.image_indices] >= 0]
    names, seen = reader.store.names, dict[str, int]()
    owner = np.array([seen.setdefault(video_of(names[row]), row) for row in rows.tolist()], np.int64)
    first = np.unique(owner)
    most = min(MOST_IMAGES, MOST_VALUES // reader.channels)
    if len(first) > most:
        first = np.sort(np.random.default_rng([seed, 0xC1]).choice(first, most, replace=False))
    image = np.full(len(number), -1, np.int64)
    kept = np.isin(owner, first)
    image[rows[kept]] = np.searchsorted(first, owner[kept])
    return image, first


def _pool(reader: LayerReader, image: np.ndarray, count: int, progress: Progress) -> np.ndarray:
    """(n, C) mean activation of each image over its rows and positions; the mean logit is its product with a filter."""
    sums = np.zeros((count, reader.channels), np.float32)
    rows = np.bincount(image[image >= 0], minlength=count)
    done = 0
    for index, block in reader.blocks(images=max(1, 2**24 // (reader.positions * reader.channels))):
        there = image[index] >= 0
        np.add.at(sums, image[index[there]], block[there].mean(1, dtype=np.float32))
        done += len(index)
        progress("class labels", done, reader.n_images)
    return sums / rows[:, None].astype(np.float32)


def _fires(logits: np.ndarray, of_model: np.ndarray) -> list[list[int]]:
    """The classes of the ``TOP`` images of largest logit, the most frequent first, of equals the one of the larger logit."""
    order = np.argsort(-logits, axis=0, kind="stable")[:TOP].T
    counted = [Counter(int(k) for k in of_model[rows] if k >= 0) for rows in order]
    return [[k for k, _ in one.most_common(MOST_CLASSES)] for one in counted]
