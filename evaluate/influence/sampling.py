"""A balanced sample of each detector's positives and negatives, drawn in one pass over a store of any size.

Every position has a random key that depends on only its number and the seed; a detector's sample are its positives, and its
negatives, of smallest key. So the sample is uniform without replacement, and does not depend on blocks, chunks or workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from evaluate.detector_bank import Bank
from stores.progress import Progress, silent
from stores.readers import LayerReader

_ROWS = 4096  # positions at a time: few enough that all of a block's entries may be candidates


@dataclass(frozen=True)
class Sample:
    """Row numbers of one detector's positions, positives first; as many negatives as positives."""

    rows: np.ndarray

    @property
    def positives(self) -> int:
        return len(self.rows) // 2


def random_keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uniform numbers in [0, 1) from row numbers (n,): splitmix64 (Steele et al. 2014) of the number and the seed."""
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(1) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2**53


def balanced_samples(
    reader: LayerReader, bank: Bank, *, positions: int = 5000, seed: int = 0, progress: Progress = silent
) -> list[Sample]:
    """One sample a detector, of at most ``positions`` rows, half of them positive; empty where it is on nowhere or everywhere."""
    j, side = bank.count, max(1, positions // 2)
    kept = _Smallest(2 * j, side)
    number, done = 0, 0
    for index, block in reader.blocks(images=max(1, 2**18 // max(1, reader.positions))):
        for x in np.array_split(block.reshape(-1, reader.channels), -(-len(block) * reader.positions // _ROWS) or 1):
            if not len(x):
                continue
            rows = np.arange(number, number + len(x))
            number += len(x)
            on = (bank.logits(x) > 0).T.cpu().numpy()  # (J, n)
            keys = random_keys(rows, seed)
            for offset, member in ((0, on), (j, ~on)):
                wanted = member & (keys[None, :] < kept.bound[offset : offset + j, None])
                detector, at = np.nonzero(wanted)
                kept.add(detector + offset, keys[at], rows[at])
        done += len(index)
        progress("sampling", done, reader.n_images)
    groups = kept.groups()
    samples = []
    for positive, negative in zip(groups[:j], groups[j:], strict=True):
        n = min(len(positive), len(negative))
        samples.append(Sample(np.concatenate([positive[:n], negative[:n]])))
    return samples


class _Smallest:
    """Of each of several groups the ``size`` entries with the smallest keys, among all that were ever added."""

    def __init__(self, groups: int, size: int) -> None:
        self.size = size
        self.bound = np.full(groups, np.inf)  # a key that is larger cannot be among the smallest any more
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._waiting = 0

    def add(self, group: np.ndarray, key: np.ndarray, row: np.ndarray) -> None:
        self._parts.append((group, key, row))
        self._waiting += len(group)
        if self._waiting > 2 * self.size * len(self.bound):
            self._prune()

    def _prune(self) -> None:
        group, key, row = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((key, group))
        group, key, row = group[order], key[order], row[order]
        start = np.searchsorted(group, np.arange(len(self.bound)))
        rank = np.arange(len(group)) - start[group]
        full = (rank == self.size - 1).nonzero()[0]
        self.bound[group[full]] = key[full]
        inside = rank < self.size
        self._parts = [(group[inside], key[inside], row[inside])]
        self._waiting = 0

    def groups(self) -> list[np.ndarray]:
        """The rows of each group, by rising key."""
        if not self._parts:
            return [np.zeros(0, np.int64) for _ in self.bound]
        self._prune()
        group, _, row = self._parts[0]
        edges = np.searchsorted(group, np.arange(len(self.bound) + 1))
        return [row[a:b] for a, b in pairwise(edges)]


def rows_of(reader: LayerReader, sample: Sample, device: torch.device) -> torch.Tensor:
    """(n, C) float32 activations of a sample."""
    return torch.from_numpy(reader.rows(sample.rows)).to(device).float()
