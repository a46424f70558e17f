"""How steadily a direction fires from frame to frame: the lag-1 autocorrelation of its logits."""

from __future__ import annotations

import numpy as np
import torch

from evaluate.detector_bank import Bank, block_images
from extract.video_rows import video_of
from stores.progress import Progress, silent
from stores.readers import LayerReader


def has_time(reader: LayerReader) -> bool:
    """Whether a store holds several moments of a video: steps of clips, or frames that are rows of their own."""
    rows = reader.store.provenance.get("dataset", {}).get("rows") or {}
    return reader.time > 1 or int(rows.get("frames", 1)) > 1


def autocorrelation(reader: LayerReader, bank: Bank, progress: Progress = silent) -> np.ndarray:
    """Correlation (J,) of each detector's logits with those at the same place one step later, over all clips and places; one pass.

    The steps are those of a clip's row, or rows that are frames of one video. NaN where there are no pairs of steps, where a
    detector's logits are all equal, and where positions are sampled, which have no place in common.
    """
    sums = _PairSums(bank.count)
    if reader.spec.sampled:
        return sums.correlation()
    names = None if reader.time > 1 else reader.store.names
    last: tuple[int, torch.Tensor] | None = None  # row, and logits (P, J), of the frame before
    done = 0
    for index, block in reader.blocks(images=block_images(reader, bank.count)):
        if not len(index):
            continue
        z = bank.logits(block)  # (n, P, J)
        if names is None:
            steps = z.reshape(len(z), reader.time, -1, bank.count)
            sums.add(steps[:, :-1], steps[:, 1:])
        else:
            rows, every = index.tolist(), z
            if last is not None:
                rows, every = [last[0], *rows], torch.cat([last[1][None], z])
            videos = [video_of(names[row]) for row in rows]
            next_frame = [k for k in range(len(rows) - 1) if videos[k] == videos[k + 1] and rows[k] + 1 == rows[k + 1]]
            at = torch.tensor(next_frame, dtype=torch.int64, device=z.device)
            sums.add(every[at], every[at + 1])
            last = int(index[-1]), z[-1].clone()
        done += len(index)
        progress("autocorrelation", done, reader.n_images)
    return sums.correlation()


class _PairSums:
    """Moments of pairs of logits, in float64."""

    def __init__(self, detectors: int) -> None:
        self.pairs = 0
        self.first, self.second, self.squares, self.squares_later, self.products = np.zeros((5, detectors))

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Add pairs (…, J)."""
        x, y = (part.reshape(-1, part.shape[-1]).double() for part in (before, after))
        self.pairs += len(x)
        self.first += x.sum(0).cpu().numpy()
        self.second += y.sum(0).cpu().numpy()
        self.squares += (x * x).sum(0).cpu().numpy()
        self.squares_later += (y * y).sum(0).cpu().numpy()
        self.products += (x * y).sum(0).cpu().numpy()

    def correlation(self) -> np.ndarray:
        n = max(self.pairs, 1)
        a, b = self.first / n, self.second / n
        spread = (self.squares / n - a * a) * (self.squares_later / n - b * b)
        least = (1e-12 * self.squares / n) * (self.squares_later / n)
        known = spread > np.maximum(least, 0)
        found = (self.products / n - a * b) / np.sqrt(np.where(known, spread, 1))
        return np.where(known, np.clip(found, -1, 1), np.nan)
