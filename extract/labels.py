"""A concept dataset's label maps at the positions of a layer: which images of a store are in it, and what each shows where."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from extract.crop_geometry import Box, visible_box
from extract.network import open_model
from extract.segmentation.base import ConceptSource
from extract.store_images import match_rows
from stores.prefetch import prefetch
from stores.store import ActivationStore


@dataclass(frozen=True)
class Alignment:
    """How a store's images and a concept dataset's belong together.

    ``rows``: store row -> the dataset's image; ``box_of``: such an image -> the part of it that the network saw.
    """

    source: ConceptSource
    rows: dict[int, int]
    box_of: Callable[[int], Box]


def align(store: ActivationStore, source: ConceptSource) -> Alignment:
    """Match a store's rows with a concept dataset's images by name, and find what the network saw of each.

    Raises MismatchError when no image is in both, or when the model's weights are no longer those of the store.
    """
    transform = open_model(store).transform
    box = lru_cache(maxsize=4096)(lambda size: visible_box(transform, size))
    return Alignment(source, match_rows(store, source), lambda image: box(source.image_size(image)))


@dataclass(frozen=True)
class ImageLabels:
    """One image's labels on an R × R' raster, or one for each step in time of a clip: ``maps`` (l, points) bool, row k is where
    label ``numbers[k]`` is.

    ``categories`` are those the image is annotated in, whether or not a label of them falls on the raster. A label that
    occurs in several categories is given only where the image is annotated in its main one: that is where it is scored.
    """

    numbers: np.ndarray
    maps: np.ndarray
    categories: tuple[str, ...]


def raster_index(mask_size: tuple[int, int], raster: tuple[int, int], box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Mask rows and columns nearest to the centres of a raster laid over the part of the image that the network sees.

    Parameters
    ----------
    mask_size : (h, w) of the label map, which covers the complete image.
    raster : (rows, columns).
    box : (left, top, right, bottom) of the network's input as fractions of the image; parts outside the image give
        index −1.
    """
    left, top, right, bottom = box
    index = []
    for size, count, low, high in ((mask_size[0], raster[0], top, bottom), (mask_size[1], raster[1], left, right)):
        centre = low + (np.arange(count) + 0.5) / count * (high - low)
        place = np.floor(centre * size + 1e-9).astype(np.int64)
        index.append(np.where((place < 0) | (place >= size), -1, place))
    return index[0], index[1]


def labels_on_raster(source: ConceptSource, i: int, raster: tuple[int, int], box: Box, time: int = 1) -> ImageLabels:
    """Read image i's masks and sample them (nearest) on the raster, the same for each of ``time`` steps of a clip.

    A label in any layer of a category counts.
    """
    masks = source.masks(i)
    places: dict[int, np.ndarray] = {}
    for layers in masks.values():
        rows, columns = raster_index((layers.shape[1], layers.shape[2]), raster, box)
        outside = (rows[:, None] < 0) | (columns[None, :] < 0)
        sampled = layers[:, rows[:, None], columns[None, :]]
        sampled[:, outside] = 0
        flat = sampled.reshape(len(layers), -1)
        for number in np.unique(flat):
            if number and source.by_number[int(number)].category in masks:
                here = flat[0] == number  # layer by layer: most categories have one
                for layer in flat[1:]:
                    here |= layer == number
                places[int(number)] = places[int(number)] | here if int(number) in places else here
    numbers = np.array(sorted(places), np.int64)
    maps = np.stack([places[int(n)] for n in numbers]) if len(numbers) else np.zeros((0, raster[0] * raster[1]), bool)
    return ImageLabels(numbers, np.tile(maps, time), tuple(masks))


def labels_ahead(
    source: ConceptSource,
    images: Sequence[int],
    raster: tuple[int, int],
    box_of: Callable[[int], Box],
    time: int = 1,
    threads: int = 2,
) -> Generator[ImageLabels, None, None]:
    """``labels_on_raster`` of many images in order, read ahead in threads within a bounded window."""

    def work(item: tuple[int, Box]) -> ImageLabels:
        return labels_on_raster(source, item[0], raster, item[1], time)

    # boxes are not for threads: the transform is run with a seed of its own
    boxed = ((i, box_of(i)) for i in images)
    yield from prefetch(work, boxed, threads=threads, depth=32)
