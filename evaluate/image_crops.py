"""What detectors fire on, as pictures: the box where a detector fires on each of its strongest images, cut out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from evaluate.detector_bank import Bank
from evaluate.top_images import on_grid, peak_step
from stores.readers import LayerReader

MARGIN = 1  # cells of the grid around the box
LARGEST = 448  # pixels of a crop's longer side: encoders take less
BLUR = 0.05  # radius, of the crop's longer side
BATCH = 64  # images at a time


@dataclass(frozen=True)
class Crops:
    """``places`` (U, 6), sorted, each once: row of the store, step in time, and cells of the grid: top, left, bottom, right. ``number`` (n, J):
    of each detector's n images, which of them."""

    places: np.ndarray
    number: np.ndarray


def crops_of(reader: LayerReader, bank: Bank, top: np.ndarray) -> Crops:
    """Of each detector's images (n, J) the smallest box around the positions where its logit is positive, with a margin of a cell; where it
    fires nowhere all of the image. Of a clip the step of the largest logit."""
    found = np.empty((*top.shape, 6), np.int64)
    filters, thresholds = bank.filters.cpu(), bank.thresholds.cpu()
    order = np.argsort(top, axis=None, kind="stable")
    wanted, first = np.unique(top.ravel()[order], return_index=True)
    showing = dict(zip(wanted.tolist(), np.split(order, first[1:]), strict=True))
    for part in np.array_split(wanted, -(-len(wanted) // BATCH)):
        for row, x in zip(part.tolist(), reader.images(part), strict=True):
            ranks, columns = np.divmod(showing[row], top.shape[1])
            z = (torch.from_numpy(x).float() @ filters[:, columns] - thresholds[columns]).numpy()
            for k, (rank, j) in enumerate(zip(ranks, columns, strict=True)):
                step = peak_step(reader, row, z[:, k])
                found[rank, j] = row, step, *box_of(on_grid(reader, row, z[:, k])[step] > 0)
    places, number = np.unique(found.reshape(-1, 6), axis=0, return_inverse=True)
    return Crops(places, number.reshape(top.shape))


def box_of(fires: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the smallest box around the cells (h, w), with a margin; of all of them where there is none."""
    height, width = fires.shape
    rows, columns = np.flatnonzero(fires.any(1)), np.flatnonzero(fires.any(0))
    if not len(rows):
        return 0, 0, height, width
    return (
        max(0, int(rows[0]) - MARGIN), max(0, int(columns[0]) - MARGIN),
        min(height, int(rows[-1]) + 1 + MARGIN), min(width, int(columns[-1]) + 1 + MARGIN),
    )  # fmt: skip


def crop_picture(image: Image.Image, box: tuple[int, int, int, int], grid: tuple[int, int]) -> Image.Image:
    """The square around a box of cells, as far as the image goes, and in it all outside the box blurred: encoders cut a square out."""
    image = image.convert("RGB")
    high, wide = image.height / grid[0], image.width / grid[1]
    top, left, bottom, right = box[0] * high, box[1] * wide, box[2] * high, box[3] * wide
    side = max(bottom - top, right - left)
    first = [max(0.0, min((a + b - side) / 2, size - side))
             for a, b, size in ((left, right, image.width), (top, bottom, image.height))]  # fmt: skip
    x, y = first
    square = (round(x), round(y), round(min(image.width, x + side)), round(min(image.height, y + side)))
    picture = image.crop(square)
    inner = [round(left) - square[0], round(top) - square[1], round(right) - square[0], round(bottom) - square[1]]
    scale = min(1.0, LARGEST / max(picture.size))
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        inner = [round(end * scale) for end in inner]
    if inner == [0, 0, *picture.size]:
        return picture
    blurred = picture.filter(ImageFilter.GaussianBlur(BLUR * max(picture.size)))
    blurred.paste(picture.crop((inner[0], inner[1], inner[2], inner[3])), (inner[0], inner[1]))
    return blurred
