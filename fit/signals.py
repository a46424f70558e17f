"""Signal vectors: the direction that is added to the activations when a concept is present (paper §3.3).

``s_i = cov[x_p, z_pi] / var[z_pi]`` over the positives of detector i only, then unit norm. Over all positions the
estimate would be biased: concepts exclude each other, so their signal values are anti-correlated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fit.losses import Sums
from fit.row_sources import Positions, positions, tiles

# Positives whose logits vary by less than this share of their mean square count as equal. The sums come from
# float32: what is left of equal logits is rounding, not variance.
EQUAL_LOGITS = 1e-5


def signals_from_sums(sums: Sums, fallback: torch.Tensor) -> torch.Tensor:
    """Signal vectors (r, I), not normalised, from one pass's sums over the positives.

    A detector with fewer than two different positives has no estimate; it gets its column of ``fallback`` (r, I).
    """
    variance = sums.logit_square.double() - sums.logit.double().square()
    covariance = sums.cross.double() - sums.mean.double() * sums.logit.double()
    known = (sums.positives > 1) & (variance > EQUAL_LOGITS * sums.logit_square.double().clamp_min(1e-30))
    signals = covariance / torch.where(known, variance, torch.ones_like(variance))
    return torch.where(known, signals, fallback.double()).to(fallback.dtype)


def pattern(covariance: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Haufe et al. 2014: ``cov(x) W``, unit columns; the encoding that belongs to linear decoders W (C, I).

    For methods that know only filters. Columns of a filter without variance are the filter itself.
    """
    signals = covariance @ filters
    norms = signals.norm(dim=0)
    return F.normalize(torch.where(norms > 1e-12, signals, filters), dim=0)


@dataclass(frozen=True)
class Moments:
    """Mean (r,) and covariance (r, r) of the rows that a fit sees, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor


def moments_of(rows: torch.Tensor | Positions) -> Moments:
    """One pass over all rows."""
    data = positions(rows)
    total = torch.zeros(data.rank, dtype=torch.float64, device=data.device)
    outer = torch.zeros(data.rank, data.rank, dtype=torch.float64, device=data.device)
    for y in tiles(data, 8192):
        total += y.sum(0)
        outer += y.T @ y
    data.ranks.sum(total, outer)
    mean = total / data.count
    return Moments(mean, outer / data.count - torch.outer(mean, mean))


def pooled_signals(sums: Sums, filters: torch.Tensor, moments: Moments) -> torch.Tensor:
    """Signal vectors (r, I) ``s_i = Σ_w w_i``, Σ_w the covariance of the rows once presence is accounted for [ours].

    Which detectors are positive at a position, m_p ∈ {0, 1}^I, explains part of the rows: ``Σ_w = Σ − C_ymᵀ C_mm⁻¹ C_my`` is what it
    leaves. Within the positives of detector i, ``cov[y, z_i] = Σ_w w_i`` holds for every i with the same Σ_w wherever signal values
    vary alike whether or not other concepts are present; so one Σ_w, estimated from all positions, serves all detectors. The
    paper's estimate (``signals_from_sums``) asks the same of only a detector's own positives: it has no less bias, and its error
    is larger by the root of how rare the concept is. Both leave out what only *presence* would show, and so do not take other
    concepts' absence for part of the signal, as ``cov(y) w`` over all positions (``pattern``) does.

    Two detectors that are always positive together explain the same: C_mm gets a small ridge.
    """
    share = sums.positives.double() / max(sums.count, 1)
    presence = torch.addr(sums.together, share, share, alpha=-1)
    with_rows = sums.mean.double().T * share[:, None] - torch.outer(share, moments.mean)
    presence.diagonal().add_(1e-6 * presence.diagonal().mean() + 1e-12)
    # Σ_w before the filters: one triangular solve for each of the r axes, none for each of the I filters
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(presence), with_rows, upper=False)
    w = F.normalize(filters.double(), dim=0)
    signals = (moments.covariance - half.T @ half) @ w
    known = signals.norm(dim=0) > 1e-9
    return torch.where(known, signals, w).to(filters.dtype)
