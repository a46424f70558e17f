"""The sums over positions that all scores come from, and the pass that makes them (Network Dissection, Bau et al. 2017).

Image by image, all detectors and all labels of the image in one product of their maps. Every sum is an integer, so
counts of parts of the images add up to those of complete images, whatever the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from evaluate.dissection_batches import SPLITS, LabelledImage, Material
from extract.segmentation.base import ConceptLabel
from stores.progress import Progress, silent


@dataclass
class Counts:
    """Sums over positions, index 0 for train and 1 for val.

    ``both`` (2, J, L): positions where detector and label are on; ``detector`` (2, J, G): detector's positions in images
    annotated in a category; ``label`` (2, L): label's positions; ``points`` (2, G): positions of annotated images.
    ``images`` (2,): images seen; ``shown`` (2, L): images that show each label; ``covered``, ``active``, ``positions``: for coverage and redundancy, over the grid, per
    direction set; ``positive`` (J,): each detector's positions on the grid. ``low``, ``high`` (J,): the smallest and the
    largest logit on the grid, of all images of the store.
    """

    labels: list[ConceptLabel]
    categories: list[str]
    category_of: np.ndarray
    both: np.ndarray
    detector: np.ndarray
    label: np.ndarray
    points: np.ndarray
    images: np.ndarray
    resolution: str
    raster: tuple[int, int]
    covered: dict[str, int] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    positions: int = 0
    positive: np.ndarray = field(default_factory=lambda: np.zeros(0))
    low: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    shown: np.ndarray = field(default_factory=lambda: np.zeros((2, 0), np.int64))

    @property
    def share(self) -> np.ndarray:
        """(J,) share of the layer's positions where each detector is positive."""
        return self.positive / max(self.positions, 1)

    def iou(self, split: int) -> np.ndarray:
        """(J, L) intersection over union on a split; unions count only images annotated in the label's category."""
        both = self.both[split]
        union = self.detector[split][:, self.category_of]  # a copy, for J × L numbers may be gigabytes
        union += self.label[split]
        union -= both
        return np.divide(both, union, out=np.zeros_like(both), where=union > 0)

    def __add__(self, other: Counts) -> Counts:
        """Counts of two parts of the images together."""
        return Counts(
            labels=self.labels,
            categories=self.categories,
            category_of=self.category_of,
            both=self.both + other.both,
            detector=self.detector + other.detector,
            label=self.label + other.label,
            points=self.points + other.points,
            images=self.images + other.images,
            resolution=self.resolution,
            raster=self.raster,
            covered={name: n + other.covered[name] for name, n in self.covered.items()},
            active={name: n + other.active[name] for name, n in self.active.items()},
            positions=self.positions + other.positions,
            positive=self.positive + other.positive,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            shown=self.shown + other.shown,
        )


def no_counts(material: Material) -> Counts:
    """Counts of no image."""
    j, n_labels, g = material.bank.count, len(material.labels), len(material.categories)
    return Counts(
        labels=material.labels,
        categories=material.categories,
        category_of=material.category_of,
        both=np.zeros((2, j, n_labels)),
        detector=np.zeros((2, j, g)),
        label=np.zeros((2, n_labels)),
        points=np.zeros((2, g)),
        images=np.zeros(2, np.int64),
        resolution=material.resolution,
        raster=material.raster,
        covered=dict.fromkeys(material.bank.slices, 0),
        active=dict.fromkeys(material.bank.slices, 0),
        positive=np.zeros(j),
        low=np.full(j, np.inf, np.float32),
        high=np.full(j, -np.inf, np.float32),
        shown=np.zeros((2, n_labels), np.int64),
    )


def count_images(material: Material, chunks: range, progress: Progress = silent) -> Counts:
    """One pass over the images of some chunks: everything that IoU, precision and recall need."""
    counts = no_counts(material)
    for block in material.blocks(chunks, "dissection", progress, splits=SPLITS):
        if block.everything.numel():
            z = block.everything.reshape(-1, material.bank.count)
            counts.low = np.minimum(counts.low, z.amin(0).cpu().numpy())
            counts.high = np.maximum(counts.high, z.amax(0).cpu().numpy())
        _count_grid(counts, material, block.logits > 0)
        for shown in block.images:
            _count_image(counts, material, shown)
    return counts


def _count_grid(counts: Counts, material: Material, on: torch.Tensor) -> None:
    """What is counted at the layer's own resolution; ``on`` (n, P, J) of the labelled images of a block."""
    on = on.reshape(-1, on.shape[2])
    counts.positions += len(on)
    positive = on.to(torch.float32).sum(0).double().cpu().numpy()  # a block has far less than 2²⁴ positions
    counts.positive += positive
    for name, part in material.bank.slices.items():
        counts.covered[name] += int(on[:, part].any(1).sum())
        counts.active[name] += int(positive[part].sum())


def _count_image(counts: Counts, material: Material, shown: LabelledImage) -> None:
    """One image: detectors that are nowhere positive on the grid are so on the raster, and cost nothing."""
    columns = np.array([material.column[int(n)] for n in shown.numbers], np.intp)
    maps = with_ones(material, shown.maps)
    size = maps[:-1].sum(1).double().cpu().numpy()
    counts.label[shown.split][columns] += size
    counts.shown[shown.split][columns] += size > 0
    at = np.array([material.categories.index(category) for category in shown.categories], np.intp)
    counts.points[shown.split][at] += shown.points
    counts.images[shown.split] += 1
    for units, fine in material.tiles([shown], shown.active):
        hits, area = intersections(maps, fine[0])
        counts.both[shown.split][np.ix_(units, columns)] += hits
        counts.detector[shown.split][np.ix_(units, at)] += area[:, None]


def with_ones(material: Material, maps: torch.Tensor) -> torch.Tensor:
    """(l, points) bool -> (l + 1, points) float32 with a row of ones: detectors' own positions by the same product."""
    out = material.scratch.take("maps", (len(maps) + 1, maps.shape[1]), maps)
    out[:-1] = maps.view(torch.uint8)  # as a number it is converted much faster
    out[-1] = 1
    return out


def intersections(maps: torch.Tensor, fine: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Positions that detectors share with each label (t, l), and their positions in all (t,), exact up to 2²⁴.

    Parameters
    ----------
    maps : (l + 1, points), of ``with_ones``.
    fine : (points, t) logits; overwritten.
    """
    sums = (maps @ fine.gt_(0)).T.double().cpu().numpy()
    return sums[:, :-1], sums[:, -1]
