"""Diagnosis of a fit from its detectors and the data."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fit.config import DUPLICATE
from fit.row_sources import Positions, positions, tiles

DEAD = 1e-5  # share of positions below which a detector counts as dead
TOGETHER = 0.8  # overlap (IoU) of two detectors' positives, likewise
OVERFULL = 0.5  # share of positions above which a detector says little


def diagnose(
    rows: torch.Tensor | Positions,
    filters: torch.Tensor,
    thresholds: torch.Tensor,
    signals: torch.Tensor,
    tile: int = 16384,
) -> dict[str, Any]:
    """Dead, duplicate and overfull detectors, coverage, orthogonality and the pairs' agreement.

    ``duplicates``: pairs of filters that are nearly parallel, or of detectors that are positive at nearly the same positions.
    ``coverage``: share of positions with at least one positive detector; ``redundancy``: mean positives on covered
    positions; ``agreement_in_fit_coordinates``: mean cosine of each filter with its own signal; ``mixing``: root mean square cosine of
    filters with other detectors' signals. All in the fit's own coordinates; rows (n, r), filters and signals (r, I).
    """
    i = filters.shape[1]
    data = positions(rows)
    together = torch.zeros(i, i, dtype=torch.float64, device=data.device)  # positions at which both are positive
    both = torch.zeros(2, dtype=torch.int64, device=data.device)
    for y in tiles(data, tile):
        on = torch.addmm(-thresholds, y, filters) > 0
        together += on.float().T @ on.float()
        each = on.sum(1)
        both += torch.stack([(each > 0).sum(), each.sum()])
    data.ranks.sum(together, both)  # float64 counts exactly
    covered, active = both.tolist()
    positives = together.diagonal()
    share = positives / data.count
    overlap = together / (positives[:, None] + positives - together).clamp_min(1)
    w, s = F.normalize(filters, dim=0), F.normalize(signals, dim=0)
    like = (w.T @ w).abs()
    pairs = w.T @ s
    off = pairs - torch.diag(pairs.diagonal())
    return {
        "dead": torch.flatten(torch.nonzero(share < DEAD)).tolist(),
        "overfull": torch.flatten(torch.nonzero(share > OVERFULL)).tolist(),
        "duplicates": torch.nonzero(torch.triu((like > DUPLICATE) | (overlap > TOGETHER), 1)).tolist(),
        "positions_per_direction": round(data.count / i, 1),
        "coverage": round(covered / data.count, 4),
        "redundancy": round(active / max(covered, 1), 4),
        "agreement_in_fit_coordinates": round(float(pairs.diagonal().mean()), 4),
        "mixing": round(float((off.square().sum() / max(i * (i - 1), 1)).sqrt()), 4),
        "median_share": round(float(share.median()), 6),
    }
