"""What the second pass is asked, and how an image is counted: compiled on a processor, by torch elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
import torch

from evaluate.bootstrap import REPLICATES, half_of
from evaluate.counts import intersections, with_ones
from evaluate.dissection_batches import SPLITS, LabelledImage, Material

BINS = 2000  # of logits
PARTS = 3  # of the images, whose histograms are counted: train, and two random halves of val
WIDTH = 32  # detectors of some images at a time, at least: as many as upsampling likes


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

    def part(self, shown: LabelledImage) -> int:
        """Which of ``PARTS`` an image is counted in."""
        return 0 if SPLITS[shown.split] == "train" else 1 + half_of(self.seed, shown.number)

    @property
    def width(self) -> np.ndarray:
        return np.asarray(np.maximum(self.high - self.low, np.float32(1e-6)))

    def edge(self, columns: slice, first: np.ndarray) -> np.ndarray:
        """(I,) the smallest logit of bin ``first`` (I,) of the detectors in ``columns``; NaN for −1."""
        value = self.low[columns] + first / (BINS - 1) * self.width[columns].astype(float)
        return np.where(first >= 0, value, np.nan)


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


@dataclass(frozen=True)
class ImageCounts:
    """One image of val: ``own`` (3, J), points of each detector on its label, of the detector, of its label, 0 if not annotated;
    ``union`` (2, U), of each group's detectors together, on their label and in all."""

    number: int
    own: np.ndarray
    union: np.ndarray


class _Asked:
    """What is asked of an image, looked up rather than found anew for each."""

    def __init__(self, material: Material, chosen: Chosen) -> None:
        self._label_of = chosen.label_of
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
        return np.asarray(row_of[self._label_of])


class CompiledCounter:
    """Counts images on a processor, one by one."""

    def __init__(self, material: Material, chosen: Chosen) -> None:
        from evaluate import label_kernels as kernels  # numba

        self._kernels, self._chosen, self._asked = kernels, chosen, _Asked(material, chosen)
        grid, raster = material.reader.grid, material.raster
        self._steps = material.reader.time
        if material.resolution == "feature":  # positions that were sampled have no grid
            grid, self._steps = (1, material.reader.positions), 1
            raster = grid
        self._grid = grid
        self._down, self._across = kernels.axis(grid[0], raster[0]), kernels.axis(grid[1], raster[1])
        self._group = np.full(material.bank.count, -1)
        for k, members in enumerate(chosen.groups):
            self._group[members] = k
        self._pairs = [np.zeros((PARTS, material.bank.count, BINS), np.uint64)]
        self._points = 0  # in the last of the pairs

    def images(self, images: Iterator[LabelledImage]) -> Iterator[ImageCounts]:
        """Add images to the histograms; gives those of val."""
        for shown in images:
            units = self._asked.annotated(shown.categories)
            if not len(units):
                continue
            if self._points + shown.points > self._kernels.MOST:
                self._pairs.append(np.zeros_like(self._pairs[-1]))
                self._points = 0
            self._points += shown.points
            counted = self._count(shown, units)
            if SPLITS[shown.split] == "val":
                yield counted

    def histograms(self) -> tuple[np.ndarray, np.ndarray]:
        """(3, J, bins) by part: points where the detector's label is, and where it is not."""
        off = reduce(np.add, (pairs & self._kernels.MOST for pairs in self._pairs))
        on = reduce(np.add, (np.right_shift(pairs, 32, out=pairs) for pairs in self._pairs))
        return on.view(np.int64), off.view(np.int64)

    def _count(self, shown: LabelledImage, units: np.ndarray) -> ImageCounts:
        """One image; what is above 0 is counted only in those of val."""
        z, maps, rows = shown.logits.numpy().T[units], shown.maps.numpy(), self._asked.rows(shown)
        # logits and bins interpolate alike, so the grid's bins are enough; fmax: NaN is in the first
        bins = (z - self._chosen.low[units, None]) / self._chosen.width[units, None] * np.float32(BINS - 1)
        bins = np.fmin(np.fmax(bins, np.float32(0)), np.float32(BINS - 1))
        positive = np.zeros(len(rows), bool)
        if SPLITS[shown.split] == "val":
            positive[shown.active] = True
        steps = [part.reshape(len(units), self._steps, *self._grid) for part in (bins, z)]
        points = shown.points // self._steps
        pairs = np.zeros(len(units), np.uint64), np.zeros(len(self._chosen.groups), np.uint64)
        for t in range(self._steps):  # counts of the steps of a clip add up
            on_grid = [np.ascontiguousarray(part[:, t]) for part in steps]
            here = np.ascontiguousarray(maps[:, t * points : (t + 1) * points])
            counted = self._kernels.count_image(
                *on_grid, positive[units], self._down, self._across, here, units, rows[units], self._group[units],
                self._pairs[-1][self._chosen.part(shown)], len(self._chosen.groups),
            )  # fmt: skip
            pairs = pairs[0] + counted[0], pairs[1] + counted[1]
        above, union = (np.stack([pair >> 32, (pair >> 32) + (pair & self._kernels.MOST)]) for pair in pairs)
        own = np.zeros((3, len(rows)))
        own[:2, units] = above
        there = units[rows[units] >= 0]
        own[2, there] = np.array([np.count_nonzero(where) for where in maps])[rows[there]]
        return ImageCounts(shown.number, own, union)


class TorchCounter:
    """Counts images on a device, many at a time where they are annotated in the same categories."""

    def __init__(self, material: Material, chosen: Chosen) -> None:
        self._material, self._chosen, self._asked = material, chosen, _Asked(material, chosen)
        self._low = torch.from_numpy(chosen.low).to(material.device)
        self._width = torch.from_numpy(chosen.width).to(material.device)
        j = material.bank.count
        self._histograms = torch.zeros(PARTS, 2, j, BINS, dtype=torch.int64, device=material.device)

    def images(self, images: Iterator[LabelledImage]) -> Iterator[ImageCounts]:
        """Add images to the histograms; gives those of val."""
        material, chosen = self._material, self._chosen
        for some, units in self._batches(images):
            self._add_histograms(some, units)
            for shown in some if SPLITS[some[0].split] == "val" else ():
                maps, rows = with_ones(material, shown.maps), self._asked.rows(shown)
                own = _own_counts(material, shown, units, rows, maps)
                yield ImageCounts(shown.number, own, _unions(material, chosen, shown, own, rows, maps))

    def histograms(self) -> tuple[np.ndarray, np.ndarray]:
        """(3, J, bins) by part: points where the detector's label is, and where it is not."""
        off, on = self._histograms.transpose(0, 1).cpu().numpy()
        return on, off

    def _batches(self, images: Iterator[LabelledImage]) -> Iterator[tuple[list[LabelledImage], np.ndarray]]:
        """Images of one part, annotated in the same categories, some at a time, and the detectors these concern."""
        waiting: dict[tuple[int, tuple[str, ...]], list[LabelledImage]] = {}
        for shown in images:
            units = self._asked.annotated(shown.categories)
            if not len(units):
                continue
            key = self._chosen.part(shown), shown.categories
            batch = waiting.setdefault(key, [])
            batch.append(shown)
            if (len(batch) + 1) * WIDTH * shown.points > self._material.tile:
                yield waiting.pop(key), units
        for (_, categories), batch in waiting.items():
            yield batch, self._asked.annotated(categories)

    def _add_histograms(self, images: list[LabelledImage], units: np.ndarray) -> None:
        """Add the logits of some images: where the detector's label is not, and where it is."""
        material, total = self._material, self._histograms[self._chosen.part(images[0])]
        runs = [list(_runs(self._asked.rows(shown)[units])) for shown in images]
        done = 0
        for some, fine in material.tiles(images, units):
            at, t = torch.from_numpy(some).to(fine.device), len(some)
            fine.sub_(self._low[at]).div_(self._width[at]).mul_(BINS - 1).clamp_(0, BINS - 1)
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
