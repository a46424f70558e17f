"""All that a report takes from a layer, in one streamed pass: how each detector's logits are distributed, and its top images.

Bins are powers of two wide and begin at multiples of their width, so that 0, the threshold, is always an edge. Where a range
outgrows its bins, neighbours are merged in pairs: counts stay exact, and do not depend on the order of the data.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.detector_bank import Bank
from evaluate.dissection_batches import Material
from evaluate.parallel import Scheduler, spread
from evaluate.top_images import VALUES, Top, top_of
from stores.progress import Progress, silent
from stores.readers import LayerReader

BINS = 64
FINEST = 22  # bits of a float32 that a bin's number keeps: floor(z / width) is exact
SMALLEST = -60  # exponent of the narrowest bin, for detectors whose logits are all 0
AT_ONCE = 64  # images read again
STAGE = "logits"
FEW = 3  # images of the middle, and of those just above the threshold
SAMPLE = 15  # images of which the middle ones are taken


@dataclass(frozen=True)
class Histogram:
    """Counts of a detector's logits in bins of equal width; the first begins at ``low``. ``least`` and ``most``: the smallest and the
    largest logit, wherever the bins begin and end (NaN: none was counted)."""

    low: float
    width: float
    counts: tuple[int, ...]
    least: float
    most: float


@dataclass(frozen=True)
class Survey:
    """What one pass finds of a set's J detectors: histograms, positions where each is positive, positions where any is, positions in
    all, and the images of largest logit. ``across``: of the images where each fires, FEW around the median and the FEW weakest; row −1
    where there are fewer."""

    histograms: list[Histogram]
    positives: np.ndarray
    covered: int
    positions: int
    top: Top
    across: Top

    @property
    def rows(self) -> np.ndarray:
        """Rows of the store (images, J) of all of them."""
        return np.concatenate([self.top.rows, self.across.rows])

    @property
    def coverage(self) -> float:
        """Share of positions with at least one positive detector."""
        return self.covered / max(self.positions, 1)

    @property
    def redundancy(self) -> float:
        """Mean number of positive detectors on covered positions."""
        return float(self.positives.sum()) / max(self.covered, 1)


class Histograms:
    """Histograms of J streams of numbers of unknown range.

    Parameters
    ----------
    count : J, below 2^17. bins : of each; a range takes at least half of them once it is wider than a float32's last bits.
    """

    def __init__(self, count: int, bins: int = BINS, device: torch.device | str = "cpu") -> None:
        self.bins = bins
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        self.exponent, self.first = np.full(count, SMALLEST), np.zeros(count, np.int64)
        self.counts = torch.zeros((count, bins), dtype=torch.int64, device=device)

    def add(self, z: torch.Tensor) -> None:
        """Count the rows of ``z`` (m, J) float32, finite."""
        if not len(z):
            return
        low, high = (end.double().cpu().numpy() for end in (z.amin(0), z.amax(0)))
        self._cover(np.minimum(self.low, low), np.maximum(self.high, high))
        scale = torch.from_numpy(np.exp2(-self.exponent.astype(np.float64))).to(z)
        shift = torch.from_numpy((np.arange(len(self.first)) * self.bins - self.first).astype(np.float64)).to(z)
        place = (torch.floor(z * scale) + shift).to(torch.int64)  # whole numbers below 2^24: exact
        self.counts += torch.bincount(place.ravel(), minlength=self.counts.numel()).view_as(self.counts)

    def __add__(self, other: Histograms) -> Histograms:
        """The histograms of both streams."""
        if not np.isfinite(other.low).all():  # nothing was counted
            return self
        both = []
        for one in (self, other):
            both.append(copy(one))
            both[-1]._cover(np.minimum(self.low, other.low), np.maximum(self.high, other.high))
        both[0].counts = both[0].counts + both[1].counts
        return both[0]

    def histogram(self, j: int) -> Histogram:
        """One of them, without the empty bins at its ends."""
        counts = self.counts[j].cpu().numpy()
        filled = np.flatnonzero(counts)
        if not len(filled):
            return Histogram(0.0, 1.0, (0,), math.nan, math.nan)
        first, last = int(filled[0]), int(filled[-1])
        width = float(np.exp2(float(self.exponent[j])))
        start, kept = (int(self.first[j]) + first) * width, tuple(counts[first : last + 1].tolist())
        return Histogram(start, width, kept, float(self.low[j]), float(self.high[j]))

    def _cover(self, low: np.ndarray, high: np.ndarray) -> None:
        """Widen bins until the range [low, high] of each stream fits: the narrowest that do, whatever came before."""
        size = np.maximum(np.maximum(np.abs(low), np.abs(high)), np.exp2(SMALLEST))
        wanted = np.maximum((high - low) / self.bins, size * np.exp2(-FINEST))
        exponent = np.maximum(self.exponent, np.floor(np.log2(np.maximum(wanted, np.exp2(SMALLEST)))).astype(np.int64))
        while True:
            width = np.exp2(exponent.astype(np.float64))
            first = np.floor(low / width).astype(np.int64)
            wide = np.floor(high / width).astype(np.int64) - first >= self.bins
            if not wide.any():
                break
            exponent = exponent + wide
        known = np.isfinite(self.low)
        if known.any() and ((exponent != self.exponent) | (first != self.first)).any():
            self._merge(exponent, first)
        self.low, self.high, self.exponent, self.first = low, high, exponent, first

    def _merge(self, exponent: np.ndarray, first: np.ndarray) -> None:
        """Put what was counted into bins 2^k times as wide: floor(floor(z / w) / 2^k) = floor(z / (2^k w))."""
        counts = self.counts.cpu().numpy()
        number = self.first[:, None] + np.arange(self.bins)
        place = (number >> np.minimum(exponent - self.exponent, 62)[:, None]) - first[:, None]
        merged = np.zeros_like(counts)
        rows = np.broadcast_to(np.arange(len(counts))[:, None], counts.shape)
        filled = counts > 0
        np.add.at(merged, (rows[filled], place[filled]), counts[filled])
        self.counts = torch.from_numpy(merged).to(self.counts.device)


@dataclass(frozen=True)
class _Sums:
    """What some chunks add to a survey of all sets of a bank: ``positives`` (J,), ``covered`` (sets,)."""

    histograms: Histograms
    positives: np.ndarray
    covered: np.ndarray
    positions: int
    top: Top
    sample: Top
    weakest: Top

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.histograms + other.histograms,
            self.positives + other.positives,
            self.covered + other.covered,
            self.positions + other.positions,
            self.top + other.top,
            self.sample + other.sample,
            self.weakest + other.weakest,
        )


def survey(
    reader: LayerReader, bank: Bank, count: int, progress: Progress = silent, scheduler: Scheduler = None
) -> dict[str, Survey]:
    """Histograms of all detectors' logits and the ``count`` images of largest logit of each, by set, in one pass over the layer.

    Equal images are in the store's order. Memory: a block of logits a thread and what is found, whatever the number of images [ours].
    ``scheduler`` : where the pass runs, see ``evaluate.parallel.spread``.
    """
    material = Material(reader, bank, None, "feature", reader.grid)
    found = spread(_sums_of, material, scheduler, count, progress=progress, stage=STAGE, labelled=False)
    across = _across(reader, bank, found)
    return {
        name: Survey(
            [found.histograms.histogram(j) for j in range(part.start, part.stop)],
            found.positives[part],
            int(found.covered[k]),
            found.positions,
            Top(found.top.rows[:, part], found.top.values[:, part]),
            Top(across.rows[:, part], across.values[:, part]),
        )
        for k, (name, part) in enumerate(bank.slices.items())
    }


def _sums_of(material: Material, chunks: range, count: int, progress: Progress = silent) -> _Sums:
    reader, bank = material.reader, material.bank
    total = len(material.rows(chunks, labelled=False))
    histograms = Histograms(bank.count, device=material.device)
    positives, covered = torch.zeros(bank.count, dtype=torch.int64), torch.zeros(len(bank.slices), dtype=torch.int64)
    top, sample, weakest = (
        Top(np.zeros((0, bank.count), np.int64), np.zeros((0, bank.count), np.float32), most)
        for most in (count, SAMPLE, FEW)
    )
    done, step = 0, max(1, VALUES // (max(bank.count, 1) * reader.positions))
    for index, x in reader.chunks(chunks):
        for start in range(0, len(index), step):
            rows = index[start : start + step]
            z = bank.logits(x[start : start + step])  # (n, P, J)
            histograms.add(z.reshape(-1, bank.count))
            on = z > 0
            positives += on.sum((0, 1)).cpu()
            covered += torch.stack([on[..., part].any(2).sum() for part in bank.slices.values()]).cpu()
            peaks = z.amax(1)
            top += top_of(rows, peaks, count)
            sample += top_of(rows, torch.where(peaks > 0, _order(rows).to(peaks)[:, None], -torch.inf), SAMPLE)
            weakest += top_of(rows, torch.where(peaks > 0, -peaks, -torch.inf), FEW)
            done += len(rows)
            progress(STAGE, done, total)
    return _Sums(histograms, positives.numpy(), covered.numpy(), done * reader.positions, top, sample, weakest)


def _order(rows: np.ndarray) -> torch.Tensor:
    """A number of each row, by which a store's images come in an order that has nothing to do with theirs."""
    return torch.from_numpy(
        (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.float32)
    )


def _across(reader: LayerReader, bank: Bank, found: _Sums) -> Top:
    """The images of ``Survey.across``; none that is among the strongest, and none twice."""
    drawn = np.where(np.isfinite(found.sample.values), found.sample.rows, -1)
    peaks = np.full(drawn.shape, -np.inf, np.float32)
    every = np.unique(drawn[drawn >= 0])
    for rows in np.array_split(every, -(-len(every) // AT_ONCE)) if len(every) else []:
        z = bank.logits(reader.images(rows)).amax(1).cpu().numpy()
        at = np.nonzero(np.isin(drawn, rows))
        peaks[at] = z[np.searchsorted(rows, drawn[at]), at[1]]
    rows, values = np.full((2 * FEW, bank.count), -1), np.full((2 * FEW, bank.count), np.nan, np.float32)
    for j in range(bank.count):
        taken = set(found.top.rows[:, j].tolist())
        weak = [
            (r, -v) for r, v in zip(found.weakest.rows[:, j], found.weakest.values[:, j], strict=True) if np.isfinite(v)
        ]
        weak = [(r, v) for r, v in weak if r not in taken]
        taken |= {r for r, _ in weak}
        order = [k for k in np.argsort(-peaks[:, j], kind="stable") if drawn[k, j] >= 0 and drawn[k, j] not in taken]
        start = max(0, (len(order) - FEW) // 2)
        middle = [(drawn[k, j], peaks[k, j]) for k in order[start : start + FEW]]
        for first, some in ((0, middle), (FEW, weak[::-1])):
            for k, (row, value) in enumerate(some, first):
                rows[k, j], values[k, j] = row, value
    return Top(rows, values)
