"""The pass after labels are chosen: how each detector's logits, and detectors of one label together, agree with the label.

It sums, for each detector and its own label alone: histograms of the logits (average precision, supervised thresholds), the
union with all detectors of its set that carry the label, and per replicate of the bootstrap the weighted counts of val. As
in the first pass every sum is a whole number, whatever parts it was added up from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from evaluate.average_precision import average_precision_from_bins
from evaluate.bootstrap import REPLICATES, poisson_weights
from evaluate.counts import intersections, with_ones
from evaluate.dissection_batches import SPLITS, LabelledImage, Material
from stores.progress import Progress, silent

BINS = 2000  # of logits
WIDTH = (
    32  # detectors of some images at a time, at least: as many as upsampling likes, as few as keep bins in the cache
)


@dataclass(frozen=True)
class Chosen:
    """What the second pass is asked: ``label_of`` (J,) column of each detector's label, −1 for none; ``low``, ``high``
    (J,) where the histograms begin and end; ``groups``: detectors of one set and label, where there are several."""

    label_of: np.ndarray
    low: np.ndarray
    high: np.ndarray
    groups: tuple[np.ndarray, ...]
    replicates: int = REPLICATES
    seed: int = 0

    @property
    def width(self) -> np.ndarray:
        return np.asarray(np.maximum(self.high - self.low, np.float32(1e-6)))

    def edge(self, columns: slice, first: np.ndarray) -> np.ndarray:
        """(I,) the smallest logit of bin ``first`` (I,) of the detectors in ``columns``; NaN for −1."""
        value = self.low[columns] + first / (BINS - 1) * self.width[columns].astype(float)
        return np.where(first >= 0, value, np.nan)


@dataclass
class Second:
    """``positive``, ``negative`` (2, J, bins): positions of annotated images by logit, where the detector's own label is
    and where it is not, on train and val. The rest is of val alone: ``union_both``, ``union`` (U,): positions of each
    group's detectors together, on their label and in all; ``both``, ``detector``, ``label`` (B, J): the replicates' counts
    of each detector and its label, in images annotated in its category."""

    chosen: Chosen
    positive: np.ndarray
    negative: np.ndarray
    union_both: np.ndarray
    union: np.ndarray
    both: np.ndarray
    detector: np.ndarray
    label: np.ndarray

    def __add__(self, other: Second) -> Second:
        """The sums of two parts of the images together."""
        names = ("positive", "negative", "union_both", "union", "both", "detector", "label")
        return Second(self.chosen, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def average_precision(self) -> np.ndarray:
        """(J,) on val, of logits rounded to the bins; NaN where the label does not occur there."""
        return average_precision_from_bins(self.positive[1].astype(float), self.negative[1].astype(float))


def groups_of(label_of: np.ndarray, slices: dict[str, slice]) -> tuple[np.ndarray, ...]:
    """Detectors (by number) that share their set and their label, wherever there are at least two."""
    found = []
    for part in slices.values():
        label = label_of[part]
        for column in np.unique(label[label >= 0]):
            members = part.start + np.flatnonzero(label == column)
            if len(members) > 1:
                found.append(members)
    return tuple(found)


def second_images(material: Material, chunks: range, chosen: Chosen, progress: Progress = silent) -> Second:
    """The second pass over the images of some chunks."""
    j, b = material.bank.count, chosen.replicates
    histograms = torch.zeros(2, 2, j, BINS, dtype=torch.int64, device=material.device)  # split, label is there
    sums = np.zeros((2, len(chosen.groups)))
    replicated = np.zeros((3, b, j))
    asked = _Asked(material, chosen)
    for block in material.blocks(chunks, "average precision", progress, splits=SPLITS):
        weights, counted = [], []
        for images, units in asked.batches(material, block.images):
            _add_histograms(histograms[images[0].split], material, asked, images, units)
            for shown in images if images[0].split == 1 else ():
                maps, rows = with_ones(material, shown.maps), asked.rows(shown)
                own = _own_counts(material, shown, units, rows, maps)
                sums += _unions(material, chosen, shown, own, rows, maps)
                counted.append(own)
                weights.append(poisson_weights(chosen.seed, shown.number, b))
        if counted:  # (B, n) · (3, n, J): whole numbers, exact in float64
            w = torch.from_numpy(np.stack(weights, 1)).double()
            replicated += (w @ torch.from_numpy(np.stack(counted, 1))).numpy()
    absent, present = histograms.transpose(0, 1).cpu().numpy()
    return Second(
        chosen=chosen, positive=present, negative=absent, union_both=sums[0], union=sums[1],
        both=replicated[0], detector=replicated[1], label=replicated[2],
    )  # fmt: skip


class _Asked:
    """What is asked of an image, looked up rather than found anew for each."""

    def __init__(self, material: Material, chosen: Chosen) -> None:
        self.label_of = chosen.label_of
        self.low = torch.from_numpy(chosen.low).to(material.device)
        self.width = torch.from_numpy(chosen.width).to(material.device)
        # by label: those of one label are neighbours then
        order = np.argsort(chosen.label_of, kind="stable")
        self._units = order[chosen.label_of[order] >= 0]
        category = material.category_of[chosen.label_of[self._units]]
        self._category = np.array(material.categories, object)[category].tolist()
        self._column = material.column
        self._known: dict[tuple[str, ...], np.ndarray] = {}

    def annotated(self, categories: tuple[str, ...]) -> np.ndarray:
        """Detectors whose label belongs to one of the categories, in the order of their labels."""
        if categories not in self._known:
            self._known[categories] = self._units[np.array([c in categories for c in self._category], bool)]
        return self._known[categories]

    def rows(self, shown: LabelledImage) -> np.ndarray:
        """(J,) the row of each detector's label among an image's maps, −1 where it is not there."""
        row_of = np.full(len(self._column) + 1, -1)  # the last: no label
        row_of[[self._column[int(n)] for n in shown.numbers]] = np.arange(len(shown.numbers))
        return np.asarray(row_of[self.label_of])

    def batches(
        self, material: Material, images: Iterator[LabelledImage]
    ) -> Iterator[tuple[list[LabelledImage], np.ndarray]]:
        """Images of one split, annotated in the same categories, some at a time, and the detectors these concern."""
        waiting: dict[tuple[int, tuple[str, ...]], list[LabelledImage]] = {}
        for shown in images:
            units = self.annotated(shown.categories)
            if not len(units):
                continue
            batch = waiting.setdefault((shown.split, shown.categories), [])
            batch.append(shown)
            if (len(batch) + 1) * WIDTH * shown.points > material.tile:
                yield waiting.pop((shown.split, shown.categories)), units
        for (_, categories), batch in waiting.items():
            yield batch, self.annotated(categories)


def _add_histograms(
    total: torch.Tensor, material: Material, asked: _Asked, images: list[LabelledImage], units: np.ndarray
) -> None:
    """Add the logits of some images to (2, J, bins): where the detector's label is not, and where it is."""
    runs = [list(_runs(asked.rows(shown)[units])) for shown in images]
    done = 0
    for some, fine in material.tiles(images, units):
        at, t = torch.from_numpy(some).to(fine.device), len(some)
        fine.sub_(asked.low[at]).div_(asked.width[at]).mul_(BINS - 1).clamp_(0, BINS - 1)
        bins = material.scratch.take("bins", tuple(fine.shape), fine, torch.int32)  # (n, points, t)
        bins.copy_(fine)
        bins += torch.arange(0, t * BINS, BINS, dtype=torch.int32, device=fine.device)
        for k, shown in enumerate(images):
            for row, first, stop in runs[k]:
                first, stop = max(first - done, 0), min(stop - done, t)
                if first < stop:
                    bins[k, :, first:stop] += shown.maps[row, :, None] * (t * BINS)
        counted = torch.bincount(bins.reshape(-1), minlength=2 * t * BINS).view(2, t, BINS)
        total.index_add_(1, at, counted)
        done += t


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Neighbours of one row: (row, first, stop), without those of row −1."""
    edges = np.flatnonzero(np.diff(rows, prepend=-2, append=-2)).tolist()
    for first, stop in pairwise(edges):
        if rows[first] >= 0:
            yield int(rows[first]), first, stop


def _own_counts(
    material: Material, shown: LabelledImage, units: np.ndarray, rows: np.ndarray, maps: torch.Tensor
) -> np.ndarray:
    """(3, J) of one image: positions of each detector on its label, of the detector, of its label; 0 if not annotated."""
    out = np.zeros((3, material.bank.count))
    present = rows >= 0
    out[2, present] = maps.sum(1).double().cpu().numpy()[rows[present]]
    for some, fine in material.tiles([shown], np.intersect1d(units, shown.active)):
        hits, area = intersections(maps, fine[0])
        out[1, some] = area
        shows = present[some]
        out[0, some[shows]] = hits[np.flatnonzero(shows), rows[some[shows]]]
    return out


def _unions(
    material: Material, chosen: Chosen, shown: LabelledImage, own: np.ndarray, rows: np.ndarray, maps: torch.Tensor
) -> np.ndarray:
    """(2, U) of one image: positions of each group's detectors together, on their label and in all."""
    out = np.zeros((2, len(chosen.groups)))
    for k, members in enumerate(chosen.groups):
        there = members[own[1, members] > 0]
        if len(there) < 2:  # the only one here is the union
            out[:, k] = own[:2, there].sum(1)
            continue
        largest = [fine[0].amax(1) for _, fine in material.tiles([shown], there)]
        hits, area = intersections(maps, torch.stack(largest, 1).amax(1, keepdim=True))
        row = rows[there[0]]
        out[:, k] = hits[0, row] if row >= 0 else 0.0, area[0]
    return out
