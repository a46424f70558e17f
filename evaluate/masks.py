"""Label maps brought to the positions at which detectors are compared with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from extract.broden import BrodenSource

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageLabels:
    """One image's labels on an R × R' raster: ``maps`` (l, points) bool, row k is where label ``numbers[k]`` is.

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
    mask_size : (h, w) of the label map, which covers the whole image.
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


def labels_on_raster(source: BrodenSource, i: int, raster: tuple[int, int], box: Box) -> ImageLabels:
    """Read image i's masks and sample them (nearest) on the raster. A label in any layer of a category counts."""
    masks = source.masks(i)
    rows, columns = raster_index(source.mask_size(i), raster, box)
    outside = (rows[:, None] < 0) | (columns[None, :] < 0)
    places: dict[int, np.ndarray] = {}
    for layers in masks.values():
        sampled = layers[:, rows[:, None], columns[None, :]]
        sampled[:, outside] = 0
        flat = sampled.reshape(len(layers), -1)
        for number in np.unique(flat):
            if number and source.by_number[int(number)].category in masks:
                here = (flat == number).any(0)
                places[int(number)] = places[int(number)] | here if int(number) in places else here
    numbers = np.array(sorted(places), np.int64)
    maps = np.stack([places[int(n)] for n in numbers]) if len(numbers) else np.zeros((0, raster[0] * raster[1]), bool)
    return ImageLabels(numbers, maps, tuple(masks))


def labels_ahead(
    source: BrodenSource,
    images: Sequence[int],
    raster: tuple[int, int],
    box_of: Callable[[int], Box],
    threads: int = 2,
) -> Generator[ImageLabels, None, None]:
    """``labels_on_raster`` of many images in order, read ahead in threads within a bounded window."""
    pending = iter(images)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="masks")
    try:
        window = deque(pool.submit(labels_on_raster, source, i, raster, box_of(i)) for i in islice(pending, 32))
        while window:
            ready = window.popleft()
            following = next(pending, None)
            if following is not None:
                window.append(pool.submit(labels_on_raster, source, following, raster, box_of(following)))
            yield ready.result()
    finally:
        pool.shutdown(cancel_futures=True)  # left early, by an error or by the reader: nothing more is read
