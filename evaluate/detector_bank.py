"""Several direction files as one bank of detectors, so that activations and masks are read once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from stores.directions import Directions
from stores.progress import Progress, silent
from stores.readers import LayerReader

VALUES = 2**26  # collected for quantiles at a time


@dataclass(frozen=True)
class Bank:
    """``filters`` (C, J) and ``thresholds`` (J,) of all files side by side; ``slices`` says whose columns are whose."""

    filters: torch.Tensor
    thresholds: torch.Tensor
    slices: dict[str, slice]

    @property
    def count(self) -> int:
        return int(self.filters.shape[1])

    def of(self, names: Iterable[str]) -> Bank:
        """The detectors of some of the files."""
        parts = {name: self.slices[name] for name in names}
        columns = torch.cat([torch.arange(p.start, p.stop) for p in parts.values()]).to(self.filters.device)
        counts = {name: part.stop - part.start for name, part in parts.items()}
        return Bank(self.filters[:, columns].contiguous(), self.thresholds[columns], slices_of(counts))

    def logits(self, block: np.ndarray) -> torch.Tensor:
        """(n, P, C) activations -> (n, P, J) logits ``x W − b``."""
        x = torch.from_numpy(block).to(self.filters.device).float()
        return x @ self.filters - self.thresholds


def slices_of(counts: Mapping[str, int]) -> dict[str, slice]:
    """Columns of each file, side by side, from their numbers of directions."""
    ends = np.cumsum([0, *counts.values()]).tolist()
    return {name: slice(start, stop) for name, (start, stop) in zip(counts, pairwise(ends), strict=True)}


def make_bank(
    sets: Mapping[str, Directions], reader: LayerReader, *, device: str = "cpu", progress: Progress = silent
) -> Bank:
    """Join direction sets. Sets without thresholds get the top quantile of their units over the store (Bau et al. 2017).

    Raises MismatchError for directions of another layer.
    """
    slices = slices_of({name: directions.count for name, directions in sets.items()})
    filters, thresholds, needs = [], [], []
    for name, directions in sets.items():
        directions.check_store(reader.spec.name, reader.channels)
        filters.append(torch.from_numpy(directions.filters))
        known = directions.thresholds
        thresholds.append(torch.from_numpy(known) if known is not None else torch.zeros(directions.count))
        if known is None:
            needs.append((slices[name], directions.quantile))
    joined, b = torch.cat(filters, 1).to(device), torch.cat(thresholds).to(device)
    for quantile in sorted({q for _, q in needs}):
        columns = torch.cat([torch.arange(s.start, s.stop) for s, q in needs if q == quantile]).to(device)
        b[columns] = top_quantile(reader, joined[:, columns], quantile, progress)
    return Bank(joined, b, slices)


def block_images(reader: LayerReader, detectors: int) -> int:
    """How many images at a time keep the logits of a block below 256 MB, whatever the grid and the detectors."""
    return max(1, min(65536, 2**26 // max(detectors, 1)) // reader.positions)


def top_quantile(
    reader: LayerReader, filters: torch.Tensor, quantile: float, progress: Progress = silent
) -> torch.Tensor:
    """Exact thresholds (J,) that the top ``quantile`` share of all positions exceeds, streamed.

    Only the largest ``quantile · N · P`` values of each unit are collected: that many is all the quantile needs. Where these are many, some units
    are worked on at a time, in as many passes: memory does not grow with the images.
    """
    keep = max(1, round(quantile * reader.n_rows))
    groups = filters.split(max(1, VALUES // (keep + 1)), 1)
    return torch.cat([_largest(reader, some, keep, progress, k, len(groups)) for k, some in enumerate(groups)])


def _largest(
    reader: LayerReader, filters: torch.Tensor, keep: int, progress: Progress, before: int, passes: int
) -> torch.Tensor:
    """(J,) thresholds that ``keep`` positions exceed, in one of ``passes``."""
    best: torch.Tensor | None = None
    done = 0
    for index, block in reader.blocks(images=block_images(reader, filters.shape[1])):
        if not len(index):
            continue
        x = torch.from_numpy(block).to(filters.device).float().reshape(-1, reader.channels)
        value = x @ filters
        joined = value if best is None else torch.cat([best, value])
        # one more than is kept: the threshold lies between the last that counts and the first that does not
        best = joined.topk(min(keep + 1, len(joined)), dim=0).values
        done += len(index)
        progress("quantiles", before * reader.n_images + done, passes * reader.n_images)
    if best is None:
        return torch.zeros(filters.shape[1], device=filters.device)
    # the middle of both: at a value of the data itself, rounding would decide whether that position counts
    last, next_one = best[min(keep, len(best)) - 1], best[min(keep, len(best) - 1)]
    middle = (last + next_one) / 2
    return torch.where(middle < last, middle, next_one)
