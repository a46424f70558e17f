"""The pictures of a report: for each direction the images on which its detector is surest, with the region it detects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluate.detectors import Bank, block_images
from evaluate.report.data import Tile
from evaluate.report.pictures import region_tile, save_strip
from extract.geometry import Box
from extract.images import read_image
from extract.seen import crop
from stores.errors import EDDPError
from stores.progress import Progress, silent
from stores.readers import LayerReader


@dataclass(frozen=True)
class Top:
    """Rows of the store (top, J) and the largest logit of each (top, J), best first."""

    rows: np.ndarray
    values: np.ndarray


def top_images(reader: LayerReader, bank: Bank, count: int, progress: Progress = silent) -> Top:
    """The ``count`` images with the largest logit at any position, for each detector; one streamed pass."""
    best: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    done = 0
    for index, block in reader.blocks(images=block_images(reader, bank.count)):
        if not len(index):
            continue
        peak = bank.logits(block).amax(1)  # (n, J)
        number = torch.from_numpy(index).to(peak.device)[:, None].expand_as(peak)
        if best is not None and rows is not None:
            peak, number = torch.cat([best, peak]), torch.cat([rows, number])
        best, order = peak.topk(min(count, len(peak)), dim=0)
        rows = number.gather(0, order)
        done += len(index)
        progress("top images", done, reader.n_images)
    if best is None or rows is None:
        return Top(np.zeros((0, bank.count), np.int64), np.zeros((0, bank.count)))
    return Top(rows.cpu().numpy(), best.cpu().numpy())


def draw_strips(
    reader: LayerReader,
    bank: Bank,
    top: Top,
    columns: slice,
    folder: Path,
    *,
    path_of: Callable[[int], Path],
    box_of: Callable[[int], Box],
    size: int,
    prediction_of: Callable[[int], str],
    progress: Progress = silent,
) -> tuple[list[str], list[list[Tile]]]:
    """Draw one strip of pictures a detector into ``folder``; returns their file names and what their tiles show.

    Parameters
    ----------
    columns : which of the bank's detectors, those of one direction set.
    path_of, box_of, prediction_of : from a store row to the image's file, to the part of it the network saw, and to
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
                image = crop(read_image(path_of(row)), box_of(row))
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
