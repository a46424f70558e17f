"""What a dissection compares: logits of detectors and maps of labels, image by image, for any range of a store's chunks."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from threading import local
from typing import Literal

import numpy as np
import torch

from evaluate.detector_bank import Bank
from extract.labels import Alignment, ImageLabels, labels_ahead
from extract.segmentation.base import ConceptLabel
from stores.errors import UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

POINTS = 224 * 224  # of a raster, at most
SPLITS = ("train", "val")
VECTOR = 16  # float32 numbers in the widest register of a processor
Resolution = Literal["mask", "feature"]


@dataclass(frozen=True)
class LabelledImage:
    """One labelled image: ``number`` in the concept dataset, ``logits`` (P, J) on the grid, label ``numbers`` and their
    ``maps`` (l, points), the categories it is annotated in; ``active``: detectors positive anywhere on the grid. Of a clip,
    positions and points run step by step."""

    number: int
    split: int
    logits: torch.Tensor
    active: np.ndarray
    numbers: np.ndarray
    maps: torch.Tensor
    categories: tuple[str, ...]

    @property
    def points(self) -> int:
        return int(self.maps.shape[1])


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a store: ``everything`` (m, P, J) logits of all, ``logits`` (n, P, J) of the labelled ones, which
    ``images`` gives one by one, once."""

    everything: torch.Tensor
    logits: torch.Tensor
    images: Iterator[LabelledImage]


@dataclass(frozen=True)
class Material:
    """A layer's activations, the detectors, the concept dataset (None where labels do not matter), and the raster on which they meet,
    the same at each step of a clip."""

    reader: LayerReader
    bank: Bank
    aligned: Alignment | None
    resolution: Resolution
    raster: tuple[int, int]

    @property
    def alignment(self) -> Alignment:
        assert self.aligned is not None
        return self.aligned

    @cached_property
    def labels(self) -> list[ConceptLabel]:
        return self.alignment.source.labels

    @cached_property
    def categories(self) -> list[str]:
        source = self.alignment.source
        return list(dict.fromkeys([*source.categories, *(label.category for label in source.labels)]))

    @cached_property
    def category_of(self) -> np.ndarray:
        """(L,) each label's category, by its place in ``categories``."""
        return np.array([self.categories.index(label.category) for label in self.labels])

    @cached_property
    def column(self) -> dict[int, int]:
        """A label's column among the counts, by its number in the masks."""
        return {label.number: k for k, label in enumerate(self.labels)}

    @property
    def device(self) -> torch.device:
        return self.bank.filters.device

    def rows(self, chunks: range, labelled: bool = True) -> list[int]:
        """Rows of some chunks whose images could be read, of only the splits that count unless given otherwise."""
        size, indices = self.reader.store.chunk_images, self.reader.image_indices
        within = indices[(indices >= chunks.start * size) & (indices < chunks.stop * size)].tolist()
        return list(self.wanted(SPLITS, within)) if labelled else within

    def wanted(self, splits: Collection[str], rows: Collection[int] | None = None) -> dict[int, int]:
        """Store row -> image of the concept dataset, of the readable images of some splits, in the store's order."""
        found, source = self.alignment.rows, self.alignment.source
        order = self.reader.image_indices.tolist() if rows is None else rows
        return {row: found[row] for row in order if row in found and source.split(found[row]) in splits}

    def blocks(
        self, chunks: range, stage: str, progress: Progress = silent, *, splits: Collection[str]
    ) -> Generator[ImageBatch, None, None]:
        """The images of some chunks; labels are read ahead, and no more is held than some images of each."""
        wanted = self.wanted(splits, self.rows(chunks, labelled=False))
        numbers, time = list(wanted.values()), self.reader.time
        labelled = labels_ahead(self.alignment.source, numbers, self.raster, self.alignment.box_of, time)
        # always as many at a time, so that a product gives the same bits whatever range it is part of
        step = max(1, min(64, 2**24 // (self.reader.positions * max(self.bank.count, 1))))
        done = 0
        with closing(labelled) as labels:
            for index, x in self.reader.chunks(chunks):
                for start in range(0, len(index), step):
                    rows = index[start : start + step]
                    inside = np.array([row in wanted for row in rows.tolist()], bool)
                    logits = self.bank.logits(x[start : start + step])
                    kept = logits if inside.all() else logits[torch.from_numpy(inside).to(logits.device)]
                    yield ImageBatch(logits, kept, self._images(rows[inside], wanted, kept, labels))
                    done += int(inside.sum())
                    progress(stage, done, len(wanted))

    def _images(
        self, rows: np.ndarray, wanted: dict[int, int], logits: torch.Tensor, labels: Iterator[ImageLabels]
    ) -> Iterator[LabelledImage]:
        active = (logits > 0).any(1).cpu().numpy()
        for k, row in enumerate(rows.tolist()):
            own = next(labels)
            maps = torch.from_numpy(own.maps).to(self.device)
            if self.reader.spec.sampled:
                maps = maps[:, torch.from_numpy(self.reader.places(row)).to(self.device)]
            split = SPLITS.index(self.alignment.source.split(wanted[row]))
            yield LabelledImage(
                wanted[row], split, logits[k], np.flatnonzero(active[k]), own.numbers, maps, own.categories
            )

    def tiles(self, images: Sequence[LabelledImage], units: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Logits of chosen detectors where the labels are: (t,) some of ``units``, and (n, points, t), to be overwritten.

        A tile is small enough to stay in a processor's cache through all that is done to it, and is filled up to complete
        vectors: what is left over is rounded otherwise, and a detector's numbers must not depend on its company.
        """
        size = self.tile // (len(images) * max(images[0].points, 1)) // VECTOR * VECTOR or VECTOR
        for start in range(0, len(units), size):
            some = units[start : start + size]
            filled = np.append(some, np.repeat(some[-1:], -len(some) % VECTOR)) if self.resolution == "mask" else some
            at = torch.from_numpy(filled).to(self.device)
            z = torch.stack([shown.logits[:, at] for shown in images])
            if self.resolution == "mask":
                time = self.reader.time
                out = self.scratch.take("fine", (len(images) * time, *self.raster, len(filled)), z)
                z = z.view(len(images) * time, -1, len(filled))  # each step is interpolated as an image
                z = upsample(z, self.reader.grid, self.raster, out).view(len(images), -1, len(filled))[..., : len(some)]
            yield some, z

    @cached_property
    def scratch(self) -> Scratch:
        return Scratch()

    @property
    def tile(self) -> int:
        """How many logits are looked at together."""
        return 2 ** (26 if self.device.type == "cuda" else 20)


class Scratch(local):
    """Memory that every tile uses again, a thread's own: to ask the system for it anew costs as much as the work in it."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Some memory on the device of another tensor; valid until it is taken by that name again."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept[name] = torch.empty(size, dtype=dtype, device=like.device)
        return self._kept[name][:size].view(shape)


def upsample(
    logits: torch.Tensor, grid: tuple[int, int], raster: tuple[int, int], out: torch.Tensor | None = None
) -> torch.Tensor:
    """Bilinear: (n, h·w, J) logits on the grid -> (n, R·R', J) on the raster; grid cells tile the image evenly.

    ``out`` (n, R, R', J) is filled and given, if there is one.
    """
    n, _, j = logits.shape
    maps = logits.view(n, *grid, j).permute(0, 3, 1, 2)
    out = logits.new_empty(n, *raster, j) if out is None else out
    torch.ops.aten.upsample_bilinear2d.out(maps, list(raster), False, None, None, out=out.permute(0, 3, 1, 2))
    return out.view(n, raster[0] * raster[1], j)


def raster_size(reader: LayerReader, alignment: Alignment, resolution: Resolution) -> tuple[int, int]:
    """Rows and columns on which masks and detectors are compared: the layer's grid, or as fine as the first image's mask is.

    Masks as large as photographs are sampled on at most ``POINTS`` points: a network that sees 224 × 224 pixels has no detector finer
    than that, and Broden's masks have 113 × 113.
    """
    if resolution == "feature":
        return reader.grid
    if reader.spec.sampled:
        raise UsageError(
            "The store holds sampled positions, so detectors cannot be upsampled to the masks. Use --resolution feature."
        )
    first = next(iter(alignment.rows.values()))
    (h, w), (left, top, right, bottom) = alignment.source.mask_size(first), alignment.box_of(first)
    rows, columns = h * (bottom - top), w * (right - left)
    less = min(1.0, (POINTS / (rows * columns)) ** 0.5)
    return max(reader.grid[0], round(rows * less)), max(reader.grid[1], round(columns * less))
