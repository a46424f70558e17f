"""Network Dissection (Bau et al. 2017): how well each detector's positions agree with each label's, counted once.

All that scores need are sums over positions, split into train and val: intersections (J, L), detector areas per category
(J, G), label areas (L,). They are accumulated as products of byte-sized maps, image by image over the labels that the
image has, never unit by unit. What is computed from them is in ``evaluate.scores``.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from evaluate.detectors import Bank, block_images
from extract.concepts import ConceptLabel
from extract.labels import Alignment, labels_ahead
from stores.errors import DatasetError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

SPLITS = ("train", "val")
BINS = 2000  # of logits, for average precision
Resolution = Literal["mask", "feature"]


@dataclass
class Counts:
    """Sums over positions, index 0 for train and 1 for val.

    ``both`` (2, J, L): positions where detector and label are on; ``detector`` (2, J, G): detector's positions in images
    annotated in a category; ``label`` (2, L): label's positions; ``points`` (2, G): positions of annotated images.
    ``images`` (2,): images seen; ``covered``, ``active``, ``positions``: for coverage and redundancy, over the grid, per
    direction set.
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
    share: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def iou(self, split: int) -> np.ndarray:
        """(J, L) intersection over union on a split; unions count only images annotated in the label's category."""
        both = self.both[split]
        union = self.detector[split][:, self.category_of] + self.label[split][None, :] - both
        return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def raster_size(reader: LayerReader, alignment: Alignment, resolution: Resolution) -> tuple[int, int]:
    """Rows and columns on which masks and detectors are compared: the layer's grid, or as fine as the masks are."""
    if resolution == "feature":
        return reader.grid
    if reader.spec.sampled:
        raise UsageError(
            "The store holds sampled positions, so detectors cannot be upsampled to the masks. Use --resolution feature."
        )
    first = next(iter(alignment.rows.values()))
    (h, w), (left, top, right, bottom) = alignment.source.mask_size(first), alignment.box_of(first)
    return max(reader.grid[0], round(h * (bottom - top))), max(reader.grid[1], round(w * (right - left)))


class Dissector:
    """Compares a bank of detectors with all labels of a concept dataset."""

    def __init__(self, reader: LayerReader, bank: Bank, alignment: Alignment, resolution: Resolution = "mask") -> None:
        self.reader = reader
        self.bank = bank
        self.alignment = alignment
        self.resolution = resolution
        source = alignment.source
        readable = set(reader.image_indices.tolist())
        present = {source.split(image) for row, image in alignment.rows.items() if row in readable}
        missing = [split for split in SPLITS if split not in present]
        if missing:
            raise DatasetError(
                f"{source.listing} has no image of the split '{missing[0]}' in the store "
                f"(it has {', '.join(sorted(present)) or 'none'}): labels are chosen on train and scored on val."
            )
        self.raster = raster_size(reader, alignment, resolution)
        self.labels = source.labels
        self.categories = list(dict.fromkeys([*source.categories, *(label.category for label in self.labels)]))
        self._column = {label.number: k for k, label in enumerate(self.labels)}
        self.category_of = np.array([self.categories.index(label.category) for label in self.labels])

    def count(self, progress: Progress = silent) -> Counts:
        """One pass over all images: everything that IoU, precision and recall need."""
        j, n_labels, g = self.bank.count, len(self.labels), len(self.categories)
        counts = Counts(
            labels=self.labels,
            categories=self.categories,
            category_of=self.category_of,
            both=np.zeros((2, j, n_labels)),
            detector=np.zeros((2, j, g)),
            label=np.zeros((2, n_labels)),
            points=np.zeros((2, g)),
            images=np.zeros(2, np.int64),
            resolution=self.resolution,
            raster=self.raster,
            covered=dict.fromkeys(self.bank.slices, 0),
            active=dict.fromkeys(self.bank.slices, 0),
            share=np.zeros(j),
        )
        for split, logits, grid_on, label_numbers, maps, categories in self._images(progress, "dissection"):
            on = (logits > 0).to(torch.float32)
            hits = (maps.to(torch.float32) @ on).T.double().cpu().numpy()  # (J, l): one product an image
            area = on.sum(0).double().cpu().numpy()
            columns = [self._column[int(n)] for n in label_numbers]
            counts.both[split][:, columns] += hits
            counts.label[split][columns] += maps.sum(1).double().cpu().numpy()
            for category in categories:
                at = self.categories.index(category)
                counts.detector[split][:, at] += area
                counts.points[split][at] += on.shape[0]
            counts.images[split] += 1
            counts.positions += len(grid_on)
            counts.share += grid_on.sum(0).double().cpu().numpy()
            for name, part in self.bank.slices.items():
                each = grid_on[:, part].sum(1)
                counts.covered[name] += int((each > 0).sum())
                counts.active[name] += int(each.sum())
        counts.share /= max(counts.positions, 1)
        return counts

    def average_precision(self, label_of: np.ndarray, progress: Progress = silent) -> np.ndarray:
        """Average precision (J,) on val of each detector's logits for its own label.

        Parameters
        ----------
        label_of : (J,) column of each detector's label, −1 for none.

        Logits are binned (2000 bins between each detector's smallest and largest grid logit), so that memory does not
        grow with the number of positions; NaN where the label does not occur on val.
        """
        j = self.bank.count
        low, high = self._logit_range()
        width = (high - low).clamp_min(1e-6)
        histogram = torch.zeros(2, j * BINS, dtype=torch.int64, device=low.device)
        offset = torch.arange(j, device=low.device) * BINS
        for split, logits, _, label_numbers, maps, categories in self._images(progress, "average precision", split=1):
            del split
            here = {self._column[int(n)]: k for k, n in enumerate(label_numbers)}
            annotated = np.array([c >= 0 and self.categories[self.category_of[c]] in categories for c in label_of])
            if not annotated.any():
                continue
            chosen = torch.from_numpy(np.flatnonzero(annotated)).to(logits.device)
            bins = (((logits[:, chosen] - low[chosen]) / width[chosen]) * (BINS - 1)).clamp(0, BINS - 1).long()
            flat = bins + offset[chosen]
            everything = torch.bincount(flat.reshape(-1), minlength=j * BINS)
            rows = torch.tensor([here.get(int(label_of[c]), -1) for c in chosen.tolist()], device=logits.device)
            has = rows >= 0
            truth = maps[rows[has]].T  # (points, detectors whose label is on this image)
            positive = torch.bincount(flat[:, has][truth], minlength=j * BINS)
            histogram[0] += everything - positive
            histogram[1] += positive
        negatives, positives = histogram.view(2, j, BINS).double().cpu().numpy()
        return average_precision_from_bins(positives, negatives)

    def _logit_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        low = torch.full((self.bank.count,), float("inf"), device=self.bank.filters.device)
        high = -low
        for index, block in self.reader.blocks(images=block_images(self.reader, self.bank.count)):
            if len(index):
                z = self.bank.logits(block).reshape(-1, self.bank.count)
                low, high = torch.minimum(low, z.amin(0)), torch.maximum(high, z.amax(0))
        return low, high

    def _images(self, progress: Progress, stage: str, split: int | None = None):  # type: ignore[no-untyped-def]
        """Yield per image: split, logits (points, J), positives on the grid (P, J), label numbers, maps, categories."""
        source, rows = self.alignment.source, self.alignment.rows
        wanted = {
            row: image
            for row, image in rows.items()
            if source.split(image) in SPLITS and (split is None or source.split(image) == SPLITS[split])
        }
        order = [row for row in self.reader.image_indices.tolist() if row in wanted]
        device = self.bank.filters.device
        done = 0
        # as many images at a time as keep the upsampled logits near 64 MB (three copies of them live at once), or 256 MB
        # on a GPU, where more at a time is faster
        points = self.raster[0] * self.raster[1]
        step = max(1, min(64, 2 ** (26 if device.type == "cuda" else 24) // (points * self.bank.count)))
        labelled = labels_ahead(source, [wanted[row] for row in order], self.raster, self.alignment.box_of)
        with closing(labelled) as ahead:
            for index, block in self.reader.blocks(images=step):
                inside = np.array([row in wanted for row in index.tolist()], bool)
                if not inside.any():
                    continue
                grid_logits = self.bank.logits(block[inside])
                fine = (
                    upsample(grid_logits, self.reader.grid, self.raster) if self.resolution == "mask" else grid_logits
                )
                for k, row in enumerate(index[inside].tolist()):
                    labels = next(ahead)
                    maps = torch.from_numpy(labels.maps).to(device)
                    if self.reader.spec.sampled:
                        maps = maps[:, torch.from_numpy(self.reader.places(row)).to(device)]
                    yield (
                        SPLITS.index(source.split(wanted[row])),
                        fine[k],
                        grid_logits[k] > 0,
                        labels.numbers,
                        maps,
                        labels.categories,
                    )
                done += int(inside.sum())
                progress(stage, done, len(order))


def upsample(logits: torch.Tensor, grid: tuple[int, int], raster: tuple[int, int]) -> torch.Tensor:
    """Bilinear: (n, h·w, J) logits on the grid -> (n, R·R', J) on the raster; grid cells tile the image evenly."""
    n, _, j = logits.shape
    maps = logits.view(n, *grid, j).permute(0, 3, 1, 2)
    fine = F.interpolate(maps, size=raster, mode="bilinear", align_corners=False)
    return fine.permute(0, 2, 3, 1).reshape(n, raster[0] * raster[1], j)


def average_precision_from_bins(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Average precision (J,) from histograms (J, bins) of the positives' and the negatives' scores, ascending bins.

    Positions of one bin are taken in together, so the value is that of scores rounded to the bins; NaN without positives.
    """
    hits = positive[:, ::-1].cumsum(1)
    seen = hits + negative[:, ::-1].cumsum(1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    total = hits[:, -1]
    gained = np.diff(hits, axis=1, prepend=0)
    value = (precision * gained).sum(1)
    return np.divide(value, total, out=np.full(len(total), np.nan), where=total > 0)
