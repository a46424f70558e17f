"""From clusters to detectors: thresholds by best F1 against the cluster assignment, margins by the logits' spread."""

from __future__ import annotations

import torch

SAMPLE = 200_000  # positions that the best threshold is read from; more change it by less than the refinement does


def best_f1_thresholds(projection: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Threshold of each detector with the best F1 of ``projection > threshold`` against cluster membership.

    Parameters
    ----------
    projection : (n, I) projections of positions on directions.
    member : (n,) int64 cluster of each position, −1 for none; detector i's truth is ``member == i``.

    Returns (I,), the middle between the last accepted and the first rejected projection.
    """
    n, count = projection.shape
    thresholds = torch.empty(count, dtype=projection.dtype, device=projection.device)
    ranks = torch.arange(1, n + 1, device=projection.device, dtype=torch.float64)
    for i in range(count):  # one column at a time: sorting all at once would hold n × I twice
        value, order = projection[:, i].sort(descending=True)
        truth = (member[order] == i).double()
        hits = truth.cumsum(0)
        f1 = 2 * hits / (ranks + truth.sum()).clamp_min(1)
        best = int(f1.argmax())
        below = value[min(best + 1, n - 1)]
        thresholds[i] = (value[best] + below) / 2
    return thresholds


def sample_rows(n: int, seed: int, device: torch.device, most: int = SAMPLE) -> torch.Tensor:
    """Numbers of at most ``most`` rows out of n, seeded."""
    if n <= most:
        return torch.arange(n, device=device)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:most].sort().values.to(device)
