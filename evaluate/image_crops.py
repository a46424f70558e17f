"""What detectors fire on, as pictures: the box where a detector fires on each of its strongest images, and what an encoder makes of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from evaluate.detector_bank import Bank
from evaluate.image_tiles import at_steps
from evaluate.top_images import on_grid, peak_step
from extract.image_text import ImageTextEncoder
from stores.attachments import read_cache, write_cache
from stores.errors import EDDPError, ImageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

log = logging.getLogger(__name__)
MARGIN = 1  # cells of the grid around the box
LARGEST = 448  # pixels of a crop's longer side: encoders take less
BLUR = 0.05  # radius, of the crop's longer side
BATCH = 64  # pictures at a time
AHEAD = 256  # crops that are cut ahead of the encoder, and those of one image
KEPT = 2**16  # crops in a cache at most, those of one run excepted
STAGE = "embeddings"

Frames = Callable[[int], Sequence[Image.Image]]


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


def embeddings_of(
    reader: LayerReader,
    places: np.ndarray,
    frames: Frames,
    encoder: ImageTextEncoder,
    images: str,
    progress: Progress = silent,
) -> np.ndarray:
    """(U, D) embeddings of the crops at ``places``, each image read once; those that an earlier run made come from a cache with the store.

    ``frames`` : from a row to the image, or the frames of the clip, as the network saw them. ``images`` : digest of the images' source. Images
    that cannot be read have NaN, and a warning counts them; raises ImageError where none can.
    """
    file = layer_file(reader, "crops")
    key = {
        "store": reader.store.fingerprint, "layer": reader.spec.name, "images": images, "encoder": encoder.digest,
        "crops": [MARGIN, LARGEST, BLUR, *reader.grid], "version": 1,
    }  # fmt: skip
    known, embedded = _sound(read_cache(file, key))
    at = {place: k for k, place in enumerate(map(tuple, known.tolist()))}
    asked = list(map(tuple, places.tolist()))
    new = np.array([k for k, place in enumerate(asked) if place not in at], np.int64)
    if not len(new):
        return embedded[[at[place] for place in asked]]
    read, made = _embedded(reader, places[new], frames, encoder, progress)
    if len(known) + len(read) == 0:
        raise ImageError(
            f"None of the images of '{reader.store.path}' can be read any more. Put them back where they were."
        )
    width = made.shape[1] if len(read) else embedded.shape[1]
    made, embedded = made.reshape(-1, width), embedded.reshape(-1, width)
    found = np.full((len(places), width), np.nan, np.float32)
    old = [k for k, place in enumerate(asked) if place in at]
    found[old] = embedded[[at[asked[k]] for k in old]]
    found[new[read]] = made
    if len(known) + len(read) <= KEPT:
        kept = {
            "places": np.concatenate([known, places[new[read]]]),
            "embeddings": np.concatenate([embedded, made]),
        }
    else:
        there = np.isfinite(found[:, 0])
        kept = {"places": places[there], "embeddings": found if there.all() else found[there]}
    del made, embedded  # the largest arrays, and writing takes more
    write_cache(file, key, kept, {})
    return found


def layer_file(reader: LayerReader, what: str) -> Path:
    """Where embeddings are stored, next to a layer's activations."""
    return reader.store.path / "layers" / reader.spec.name / f"{what}.safetensors"


def _sound(cached: tuple[dict[str, np.ndarray], object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Places and embeddings of a cache, none where they do not go together."""
    places, embeddings = (cached[0].get(name) for name in ("places", "embeddings")) if cached else (None, None)
    if places is None or embeddings is None or places.ndim != 2 or embeddings.ndim != 2:
        return np.empty((0, 6), np.int64), np.empty((0, 0), np.float32)
    if places.shape != (len(embeddings), 6) or (places.dtype, embeddings.dtype) != (np.dtype("i8"), np.dtype("f4")):
        return np.empty((0, 6), np.int64), np.empty((0, 0), np.float32)
    return places, embeddings


def _embedded(
    reader: LayerReader, places: np.ndarray, frames: Frames, encoder: ImageTextEncoder, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Which places, sorted, are of images that can be read, and the embeddings of their crops; pictures are read and cut in threads."""

    def cut(mine: np.ndarray) -> list[Image.Image] | EDDPError:
        try:
            seen = at_steps(frames(int(mine[0, 0])), reader.time)
        except EDDPError as error:
            return error
        return [crop_picture(seen[place[1]], place[2:], reader.grid) for place in map(tuple, mine.tolist())]

    rows, starts = np.unique(places[:, 0], return_index=True)
    by_row = np.split(np.arange(len(places)), starts[1:])
    read: list[int] = []
    made: list[np.ndarray] = []
    missing: list[EDDPError] = []
    waiting: list[Image.Image] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="crop") as pool:
        ends = np.flatnonzero(np.diff(starts // AHEAD)) + 1
        for first, last in pairwise([0, *ends.tolist(), len(rows)]):
            some = by_row[first:last]
            for mine, pictures in zip(some, pool.map(cut, [places[k] for k in some]), strict=True):
                if isinstance(pictures, EDDPError):
                    missing.append(pictures)
                    continue
                read += mine.tolist()
                waiting += pictures
                while len(waiting) >= BATCH:
                    made.append(encoder.images(waiting[:BATCH]))
                    waiting = waiting[BATCH:]
                    progress(STAGE, len(read) - len(waiting), len(places))
        if waiting:
            made.append(encoder.images(waiting))
        progress(STAGE, len(places), len(places))
    if missing:
        log.warning(
            "%d of %d images cannot be read, and are left out of what directions fire on. The first: %s",
            len(missing),
            len(rows),
            missing[0],
        )
    return np.array(read, np.int64), np.concatenate(made) if made else np.empty((0, 0), np.float32)
