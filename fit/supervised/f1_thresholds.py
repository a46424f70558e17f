"""Thresholds that a linear score agrees best with its label above, by F1 over all labelled positions."""

from __future__ import annotations

import torch

from fit.supervised.base import Task
from stores.progress import Progress
from stores.statistics import Statistics

BINS = 4096
WIDTH = 16.0  # standard deviations that the bins cover: ±8; what lies beyond is counted in the outermost


def best_f1_of_labels(
    task: Task, filters: torch.Tensor, moments: Statistics, device: str, progress: Progress
) -> torch.Tensor:
    """Threshold b (L,) float64 of each column of ``filters`` (C, L) with the best F1 of ``w·x > b`` against its label.

    One pass over the labelled images; scores are counted in bins of 1/256 of their standard deviation over the layer,
    which the moments tell beforehand. The threshold lies in the middle of the empty bins below the last accepted one.
    """
    w = filters.double().cpu()
    mean = torch.from_numpy(moments.mean) @ w
    spread = ((torch.from_numpy(moments.covariance) @ w) * w).sum(0).clamp_min(1e-30).sqrt()
    scaled, shift = (w / spread).float().to(device), (mean / spread).float().to(device)
    counts = torch.zeros(2, task.count * BINS, dtype=torch.int64, device=device)
    offset = torch.arange(task.count, device=device) * BINS
    for block in task.blocks(device):
        score = block.x @ scaled - shift
        bins = ((score / WIDTH + 0.5) * BINS).clamp_(0, BINS - 1).long() + offset
        counts[0] += torch.bincount(bins[block.annotated & ~block.present], minlength=task.count * BINS)
        counts[1] += torch.bincount(bins[block.annotated & block.present], minlength=task.count * BINS)
        progress("thresholds", block.first + len(block.x), task.rows)
    edge = _best_edges(*counts.view(2, task.count, BINS).cpu())
    return mean + spread * (edge / BINS - 0.5) * WIDTH


def _best_edges(negative: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """(L,) number of the bin edge above which F1 is best, from histograms (L, bins), ascending; halves are allowed."""
    hits = positive.flip(1).cumsum(1).double()
    seen = (positive + negative).flip(1).cumsum(1).double()
    best = (2 * hits / (seen + hits[:, -1:]).clamp_min(1)).argmax(1, keepdim=True)  # bins taken from the top, less one
    # bins below it that hold nothing may be taken as well: go to their middle
    reach = (seen <= seen.gather(1, best)).sum(1, keepdim=True)
    return (BINS - (best + 1 + reach).double() / 2).squeeze(1)
