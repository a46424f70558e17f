"""For each detector the images on which it is surest, and where on an image its logits are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evaluate.detector_bank import Bank
from evaluate.dissection_batches import Material
from evaluate.parallel import Scheduler, spread
from stores.progress import Progress, silent
from stores.readers import LayerReader

VALUES = 2**22  # logits at a time: what a pass needs does not grow with the store
STAGE = "strongest images"


@dataclass(frozen=True)
class Top:
    """Rows of the store (top, J) and the largest logit of each (top, J), best first, of equals the lower row first; ``most``
    that are stored (None: all)."""

    rows: np.ndarray
    values: np.ndarray
    most: int | None = None

    def __add__(self, other: Top) -> Top:
        """The best of both, whatever the order in which parts of a store are added up."""
        rows = np.concatenate([self.rows, other.rows])
        values = np.concatenate([self.values, other.values])
        order = np.lexsort((rows, -values), axis=0)[: self.most]
        return Top(np.take_along_axis(rows, order, 0), np.take_along_axis(values, order, 0), self.most)


def top_of(rows: np.ndarray, peaks: torch.Tensor, most: int) -> Top:
    """The ``most`` largest of ``peaks`` (n, J), the largest logits of the images ``rows`` (n,), of each detector."""
    found = peaks.sort(dim=0, descending=True, stable=True)  # stable: of equals the lower row first
    return Top(rows[found.indices[:most].cpu().numpy()], found.values[:most].cpu().numpy(), most)


def strongest(
    reader: LayerReader, bank: Bank, most: int, progress: Progress = silent, scheduler: Scheduler = None
) -> Top:
    """The ``most`` images of largest logit of each detector, in one pass; ``scheduler``: see ``evaluate.parallel.spread``."""
    material = Material(reader, bank, None, "feature", reader.grid)
    return spread(_strongest_of, material, scheduler, most, progress=progress, stage=STAGE, labelled=False)


def _strongest_of(material: Material, chunks: range, most: int, progress: Progress = silent) -> Top:
    reader, bank = material.reader, material.bank
    total = len(material.rows(chunks, labelled=False))
    top = Top(np.zeros((0, bank.count), np.int64), np.zeros((0, bank.count), np.float32), most)
    done, step = 0, max(1, VALUES // (max(bank.count, 1) * reader.positions))
    for index, x in reader.chunks(chunks):
        for start in range(0, len(index), step):
            rows = index[start : start + step]
            top += top_of(rows, bank.logits(x[start : start + step]).amax(1), most)
            done += len(rows)
            progress(STAGE, done, total)
    return top


def on_grid(reader: LayerReader, image: int, logits: np.ndarray) -> np.ndarray:
    """(T, h, w) map of an image's logits (P,), T = 1 but for clips. Where positions are sampled, a cell takes the nearest
    sampled one's."""
    shape = (reader.time, *reader.grid)
    if reader.spec.sampled:
        cells = np.stack(np.unravel_index(np.arange(reader.spec.grid_positions), shape), 1)
        known = cells[reader.places(image)]
        logits = logits[((cells[:, None] - known) ** 2).sum(2).argmin(1)]
    return logits.reshape(shape)


def peak_step(reader: LayerReader, image: int, logits: np.ndarray) -> int:
    """The step in time of the largest of an image's logits (P,), of equals the first."""
    at = int(logits.argmax())
    return int(reader.places(image)[at] if reader.spec.sampled else at) // (reader.grid[0] * reader.grid[1])
