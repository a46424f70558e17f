"""The pictures of a report: for each direction the images on which its detector is surest, with the region it detects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluate.detector_bank import Bank, block_images
from evaluate.dissection_batches import Material
from evaluate.image_tiles import region_tile, save_strip
from evaluate.report.evaluation_cards import Tile
from extract.crop_geometry import Box
from extract.store_images import crop
from stores.errors import EDDPError
from stores.progress import Progress, silent
from stores.readers import LayerReader

STAGE = "top images"


@dataclass(frozen=True)
class Top:
    """Rows of the store (top, J) and the largest logit of each (top, J), best first, of equals the lower row first; ``most``
    that are kept (None: all)."""

    rows: np.ndarray
    values: np.ndarray
    most: int | None = None

    def __add__(self, other: Top) -> Top:
        """The best of both, whatever the order in which parts of a store are added up."""
        rows = np.concatenate([self.rows, other.rows])
        values = np.concatenate([self.values, other.values])
        order = np.lexsort((rows, -values), axis=0)[: self.most]
        return Top(np.take_along_axis(rows, order, 0), np.take_along_axis(values, order, 0), self.most)


def top_images(reader: LayerReader, bank: Bank, count: int, progress: Progress = silent) -> Top:
    """The ``count`` images with the largest logit at any position, for each detector; one streamed pass."""
    return _top(reader, bank, range(reader.store.n_chunks), count, progress, reader.n_images)


def top_of(material: Material, chunks: range, count: int, progress: Progress = silent) -> Top:
    """``top_images`` of some chunks, as ``evaluate.parallel.spread`` runs it."""
    return _top(material.reader, material.bank, chunks, count, progress, len(material.rows(chunks, labelled=False)))


def _top(reader: LayerReader, bank: Bank, chunks: range, count: int, progress: Progress, total: int) -> Top:
    best = Top(np.zeros((0, bank.count), np.int64), np.zeros((0, bank.count), np.float32), count)
    done, step = 0, block_images(reader, bank.count)
    for index, x in reader.chunks(chunks):
        for start in range(0, len(index), step):
            rows = index[start : start + step]
            peak = bank.logits(x[start : start + step]).amax(1)  # (n, J)
            found = peak.sort(dim=0, descending=True, stable=True)  # stable: of equals the lower row first
            order = found.indices[:count].cpu().numpy()
            best += Top(rows[order], found.values[:count].cpu().numpy(), count)
            done += len(rows)
            progress(STAGE, done, total)
    return best


def draw_strips(
    reader: LayerReader,
    bank: Bank,
    top: Top,
    columns: slice,
    folder: Path,
    *,
    picture_of: Callable[[int], Image.Image],
    box_of: Callable[[int], Box],
    size: int,
    prediction_of: Callable[[int], str],
    progress: Progress = silent,
) -> tuple[list[str], list[list[Tile]]]:
    """Draw one strip of pictures a detector into ``folder``; returns their file names and what their tiles show.

    Parameters
    ----------
    columns : which of the bank's detectors, those of one direction set.
    picture_of, box_of, prediction_of : from a store row to the image as RGB, to the part of it the network saw, and to
        what the model takes it for.

    An image file that has gone since the extraction is left out of the strip; a strip without any has no file.
    """
    names = reader.store.names
    folder.mkdir(parents=True, exist_ok=True)

    def draw(j: int) -> tuple[str, list[Tile]]:
        pictures, tiles = [], []
        weights, threshold = bank.filters[:, j].cpu(), float(bank.thresholds[j])
        chosen = [int(row) for row in top.rows[:, j]]
        blocks = reader.images(chosen)
        for row, value, block in zip(chosen, top.values[:, j], blocks, strict=True):
            try:
                image = crop(picture_of(row), box_of(row))
            except EDDPError:
                continue
            logits = (torch.from_numpy(block).float() @ weights - threshold).numpy()
            pictures.append(region_tile(image, on_grid(reader, row, logits), size))
            tiles.append(Tile(names[row], round(float(value), 3), prediction_of(row)))
        if not pictures:
            return "", []
        file = f"{j - columns.start:05d}.jpg"
        save_strip(folder / file, pictures)
        return file, tiles

    files, shown = [], []
    with ThreadPoolExecutor(2, thread_name_prefix="draw") as pool:
        for j, (file, tiles) in zip(
            range(columns.start, columns.stop), pool.map(draw, range(columns.start, columns.stop)), strict=True
        ):
            files.append(file)
            shown.append(tiles)
            progress("pictures", j + 1, bank.count)
    return files, shown


def on_grid(reader: LayerReader, image: int, logits: np.ndarray) -> np.ndarray:
    """(h, w) map of an image's logits (P,). Where positions are sampled, a cell takes the nearest sampled one's."""
    if reader.spec.sampled:
        cells = np.stack(np.divmod(np.arange(reader.spec.grid_positions), reader.grid[1]), 1)
        known = cells[reader.places(image)]
        logits = logits[((cells[:, None] - known) ** 2).sum(2).argmin(1)]
    return logits.reshape(reader.grid)
