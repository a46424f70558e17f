"""For each detector the images on which it is surest, and where on an image its logits are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stores.readers import LayerReader


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
